"""Mask training through the one loop: real text, real blocks, one process; killed and resumed bit for bit."""

import copy
from pathlib import Path

import pytest
import torch
from killing import KilledError, killed_at
from ranks import run_ranks
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from mlpt.config import RunConfig, load_run_config, recipe_names
from mlpt.data.prepare import DataConfig, prepare
from mlpt.errors import UserError
from mlpt.meta.learner import MetaLearner
from mlpt.models.masked import THETA, attach_scores, current_masks, masked_modules
from mlpt.run.build import arms_in, build_model, open_sources, run_rank
from mlpt.run.launch import pretrain
from mlpt.run.saved import resolve_model
from mlpt.settings import load_settings
from mlpt.sparsity.artefacts import base_hash, fit, load_masks
from mlpt.sparsity.making import pruned_count
from mlpt.sparsity.scores import scores_of_mask
from mlpt.sparsity.structured import load_group_mask, whole_groups
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.evaluate import held_out_losses
from mlpt.training.group import Group
from mlpt.training.outer import Outer
from mlpt.training.state import load_model_tensors
from mlpt.training.tracker import read_metrics

SENTENCE = "a mask keeps some weights of the dense model and prunes others so that a small network remains within it"
MODEL = {"hidden_size": 32, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("masked")
    words = SENTENCE.split()
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(400):
        picked = torch.randint(len(words), (30,), generator=generator).tolist()
        lines.append(" ".join(words[word] for word in picked))
    (folder / "text.txt").write_text("\n\n".join(lines))
    prepare(
        DataConfig(
            source=str(folder / "text.txt"), vocab_size=80, block_size=16, dev_share=0.2, test_share=0.2, workers=1
        ),
        str(folder / "blocks"),
    )
    return str(folder / "blocks")


@pytest.fixture(scope="module")
def dense(blocks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    run(blocks, folder, masks=None, steps=20, model=MODEL)
    return folder / "model"


def config_of(model, steps=12, **values) -> RunConfig:
    values = {
        "objectives": {"mlm": {}},
        "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}}},
        "model": model if isinstance(model, dict) else {"pretrained": str(model)},
        **values,
    }
    train = {
        "steps": steps,
        "batch_size": 8,
        "micro_batch_size": 8,
        "evaluate_batches": 2,
        "checkpoint_every": 5,
        "optimizer": {"lr": 5e-3, "weight_decay": 0},
        **values.pop("train", {}),
    }
    return load_settings(RunConfig, {**values, "train": train, "report": {"tensorboard": False}})


def run(blocks, folder, model, **values):
    must_save = values.pop("must_save", lambda step: False)
    folder.mkdir(parents=True, exist_ok=True)
    return run_rank(config_of(model, **values), blocks, folder, Group(), must_save=must_save)


MASKS = {"sparsity": 0.6, "reset": {"interval": 4}}
KD = {
    "objectives": {"distill": {}, "mlm": {}},
    "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"distill": 1}}}},
    "masks": {**MASKS, "train": ["scores"], "reset": {"cadence": "before", "interval": 5}},
}


def counts(file) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in file.masks.items()}


@pytest.mark.parametrize(
    "values",
    [
        {"masks": MASKS},
        KD,
        {
            "objectives": {"combined": {}, "mlm": {}},
            "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"combined": 1}}}},
            "masks": MASKS,
        },
    ],
    ids=["tamt_mlm", "tamt_kd", "tamt_mlm_kd"],
)
def test_mask_training_leaves_the_base_untouched_and_masks_exact_beside_it(blocks, dense, tmp_path, values):
    summary = run(blocks, tmp_path, dense, **values)
    assert summary["steps"] == 12
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    body = [name for name in before if name.startswith("bert.")]
    assert all(torch.equal(before[name], after[name]) for name in body)
    assert not any("scores" in name for name in after)
    for folder in (tmp_path / "model", tmp_path / "masks" / "step_5"):
        saved = load_masks(folder)
        assert counts(saved) == {name: pruned_count(mask.numel(), 0.6) for name, mask in saved.masks.items()}
        assert fit(saved, AutoModelForMaskedLM.from_pretrained(dense))
    assert not torch.equal(*(load_masks(tmp_path / "masks" / f"step_{n}").masks[WORD] for n in (5, 10)))


WORD = "bert.encoder.layer.0.output.dense.weight"


STRUCTURED = {"structured": "both", "sparsity": 0.5, "train": ["scores", "heads"]}


@pytest.mark.parametrize("values", [{"masks": MASKS}, KD], ids=["tamt_mlm", "tamt_kd"])
def test_a_killed_mask_training_resumes_bit_for_bit(blocks, dense, tmp_path, values):
    run(blocks, tmp_path / "whole", dense, **values)
    with pytest.raises(KilledError):
        run(blocks, tmp_path / "killed", dense, must_save=killed_at(8), **values)
    summary = run(blocks, tmp_path / "killed", dense, **values)
    assert summary["resumed_at"] == 5
    whole, resumed = (load_masks(tmp_path / one / "model") for one in ("whole", "killed"))
    assert all(torch.equal(whole.masks[name], mask) for name, mask in resumed.masks.items())
    states = [load_file(tmp_path / one / "model" / "model.safetensors") for one in ("whole", "killed")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def rank_main(group: Group, values: dict, blocks: str, folder: str) -> None:
    run_rank(RunConfig.model_validate(values), blocks, Path(folder), group)


def test_two_workers_train_the_same_scores_as_one(blocks, dense, tmp_path):
    values = {"masks": MASKS, "steps": 6, "train": {"micro_batch_size": 4}}
    run(blocks, tmp_path / "one", dense, **values)
    (tmp_path / "two").mkdir()
    run_ranks(rank_main, config_of(dense, **values).model_dump(), blocks, str(tmp_path / "two"))
    states = [
        Checkpoints(tmp_path / world / "checkpoints", 3).latest(print).tensors["model"] for world in ("one", "two")
    ]
    scores = [name for name in states[0] if name.endswith("scores")]
    assert len(scores) == 14
    for name in scores:
        torch.testing.assert_close(states[0][name], states[1][name], atol=1e-4, rtol=0)
    masks = [load_masks(tmp_path / world / "model").masks for world in ("one", "two")]
    agreed = [float((masks[0][name] == masks[1][name]).float().mean()) for name in masks[0]]
    assert min(agreed) > 0.98  # scores at the very threshold may fall either way


def test_iterative_pruning_runs_in_the_loop_and_its_masks_belong_to_the_pretrained_weights(blocks, dense, tmp_path):
    masks = {
        "method": "imp",
        "train": ["weights", "heads"],
        "iterative": {"interval": 4, "levels": [0.2, 0.4, 0.6]},
    }
    run(blocks, tmp_path, dense, masks=masks, steps=10)
    base = AutoModelForMaskedLM.from_pretrained(dense)
    for level in ("0.2", "0.4", "0.6"):
        saved = load_masks(tmp_path / "masks" / level)
        assert fit(saved, base)
        assert saved.description.density == pytest.approx(1 - float(level), abs=1e-3)
        assert saved.description.method == "imp"


def test_trained_masks_of_heads_and_neurons_are_an_artefact_of_their_base(blocks, dense, tmp_path):
    run(blocks, tmp_path, dense, masks=STRUCTURED, train={"optimizer": {"lr": 2e-2}})
    base, stranger = (AutoModelForMaskedLM.from_pretrained(dense) for _ in range(2))
    with torch.no_grad():
        stranger.bert.encoder.layer[0].output.dense.weight.add_(1)
    found = []
    for folder in (tmp_path / "model", tmp_path / "masks" / "step_5"):
        saved = load_masks(folder)
        with pytest.raises(UserError, match="another base model"):
            fit(saved, stranger)
        found.append(whole_groups(base, fit(saved, base)))
        for kind, name in (("heads", "head_mask.npy"), ("neurons", "ffn_mask.npy")):
            assert torch.equal(found[-1][kind], load_group_mask(folder / name))
            assert int((~found[-1][kind]).sum()) == found[-1][kind].numel() // 2
    assert not torch.equal(found[0]["neurons"], found[1]["neurons"])


@pytest.mark.parametrize("lag", [0, 3])
def test_meta_learned_masks_change_while_weights_train_and_resume_bit_for_bit(blocks, tmp_path, lag):
    values = {
        "masks": {"sparsity": 0.5, "train": ["weights", "heads"]},
        "meta": {
            "interval": 3,
            "lag": lag,
            "rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}, "masks": {"lr": 0.02}},
            "lookahead": {"start": 3, "batch_size": 4, "dev_batch_size": 4},
        },
        "train": {"checkpoint_every": 6},
    }
    run(blocks, tmp_path / "whole", MODEL, **values)
    config = config_of(MODEL, **values)
    start = build_model(config, open_sources(config, blocks))
    saved = load_masks(tmp_path / "whole" / "model")
    assert counts(saved) == {name: pruned_count(mask.numel(), 0.5) for name, mask in saved.masks.items()}
    started = start.get_parameter(f"backbone.{WORD.replace('weight', 'scores')}") > 0.01
    assert not torch.equal(saved.masks[WORD], started)
    trained = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole" / "model")
    assert saved.description.base_hash == base_hash(trained, list(saved.masks))

    with pytest.raises(KilledError):
        run(blocks, tmp_path / "killed", MODEL, must_save=killed_at(8), **values)
    assert run(blocks, tmp_path / "killed", MODEL, **values)["resumed_at"] == 6
    resumed = load_masks(tmp_path / "killed" / "model")
    assert resumed.description == saved.description
    assert all(torch.equal(resumed.masks[name], mask) for name, mask in saved.masks.items())


@pytest.mark.parametrize(
    ("values", "lag"),
    [
        ({"masks": MASKS}, None),
        ({**KD, "masks": {**KD["masks"], "reset": {"interval": 100}}}, None),
        ({"masks": MASKS}, 2),
    ],
    ids=["resets between saves", "never reset", "a learned mixture"],
)
def test_a_save_at_any_step_changes_nothing(blocks, dense, tmp_path, values, lag):
    """Preemption notices save at steps 3 and 7; the run, and one that dies after them, goes on as if undisturbed."""
    learned = {"interval": 3, "lag": lag, "rules": {"mixture": {"rule": "exp3"}}}
    values = values if lag is None else {**values, "objectives": {"mlm": {}, "dtd": {}}, "meta": learned}
    every = {"checkpoint_every": 100, "evaluate_every": 4, "log_every": 5}
    run(blocks, tmp_path / "whole", dense, train=every, **values)
    run(blocks, tmp_path / "saved", dense, train=every, must_save=lambda step: step in (3, 7), **values)
    with pytest.raises(KilledError):
        run(
            blocks,
            tmp_path / "died",
            dense,
            train=every,
            must_save=lambda step: step in (3, 7) or killed_at(8)(step),
            **values,
        )
    assert run(blocks, tmp_path / "died", dense, train=every, **values)["resumed_at"] == 7
    for other in ("saved", "died"):
        ends = [Checkpoints(tmp_path / one / "checkpoints").load(12) for one in ("whole", other)]
        for stem in ("model", "optimizer"):
            ours, theirs = (end.tensors[stem] for end in ends)
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert untimed(tmp_path / other) == untimed(tmp_path / "whole")
        masks = [load_masks(tmp_path / one / "model").masks for one in ("whole", other)]
        assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    for step in (3, 7):
        beside = load_masks(tmp_path / "saved" / "masks" / f"step_{step}")
        assert counts(beside) == {name: pruned_count(mask.numel(), 0.6) for name, mask in beside.masks.items()}


def test_a_shorter_run_of_the_same_schedule_ends_with_the_masks_of_that_step(blocks, dense, tmp_path):
    """How TAMT-KD's published masks of steps 999, 1999, ... are had: the recipe saves at 1000, 2000, ..."""
    settings = {"checkpoint_every": 100, "schedule": {"length": 12}}
    run(blocks, tmp_path / "whole", dense, train=settings, must_save=lambda step: step == 7, **KD)
    run(blocks, tmp_path / "short", dense, steps=7, train=settings, **KD)
    whole, short = (load_masks(tmp_path / one / "masks" / "step_7").masks for one in ("whole", "short"))
    assert all(torch.equal(mask, short[name]) for name, mask in whole.items())


def untimed(folder):
    kept = ("step", "loss", "dev", "held_out", "mixture")
    return [{key: line.get(key) for key in kept} for line in read_metrics(folder)]


def test_the_best_is_measured_on_the_masks_that_are_saved_with_it(blocks, dense, tmp_path):
    """Thresholds are never reset while training: what is saved and what trains have drifted apart."""
    masks = {**MASKS, "reset": {"interval": 100}}
    values = {"masks": masks, "train": {"evaluate_every": 6, "checkpoint_every": 100, "optimizer": {"lr": 2e-2}}}
    run(blocks, tmp_path, dense, **values)
    best = Checkpoints(tmp_path / "checkpoints").best()
    (measured,) = [line["dev"]["mlm"] for line in read_metrics(tmp_path) if "dev" in line and line["step"] == best]
    config = config_of(dense, **values)
    sources = open_sources(config, blocks)
    model = build_model(config, sources)
    load_model_tensors(model, Checkpoints(tmp_path / "checkpoints").load(best).tensors["model"])
    trained = {name: mask.clone() for name, mask in current_masks(model).items()}
    saved = load_masks(tmp_path / "masks" / f"step_{best}").masks
    assert any(not torch.equal(mask, trained[name]) for name, mask in saved.items())
    for name, module in masked_modules(model).items():
        module.scores.data.copy_(scores_of_mask(saved[name]))
        module.threshold.fill_(THETA)
    arms = arms_in(config, sources).every
    losses = held_out_losses(model, arms, sources, "dev", 2, 8, config.seed, Group())
    assert losses["mlm"] == pytest.approx(measured, rel=1e-6)


def test_a_model_made_of_a_checkpoint_has_the_masks_that_were_saved_with_it(blocks, dense, tmp_path):
    settings = {
        "objectives": {"atd": None, "dtd": None},
        "meta": {"rules": {"mixture": {"rule": "uniform"}}},
        "model": {"pretrained": str(dense)},
        "masks": {**MASKS, "reset": {"interval": 100}},
        "data": {"source": blocks},
        "train": {"steps": 6, "batch_size": 8, "evaluate_batches": 1, "checkpoint_every": 3, "optimizer": {"lr": 2e-2}},
        "runtime": {"num_workers": 0},
        "report": {"progress": "off", "tensorboard": False},
        "run_dir": str(tmp_path / "run"),
    }
    folder = pretrain("quickstart", settings, console=Console(quiet=True)).folder
    made, saved = load_masks(resolve_model(f"{folder}@step=3")), load_masks(folder / "masks" / "step_3")
    assert counts(made) == {name: pruned_count(mask.numel(), 0.6) for name, mask in saved.masks.items()}
    assert all(torch.equal(mask, saved.masks[name]) for name, mask in made.masks.items())


LEARNED = {"interval": 3, "lag": 2, "rules": {"mixture": {"rule": "mometas", "dev_batch_size": 4}}}


@pytest.mark.parametrize(
    "masks",
    [
        {**MASKS, "reset": {"interval": 2}},
        {"method": "imp", "train": ["weights", "heads"], "iterative": {"interval": 4, "levels": [0.2, 0.4, 0.6]}},
        STRUCTURED,
    ],
    ids=["threshold reset", "tamt_imp", "structured"],
)
def test_the_learner_sees_the_network_that_the_workers_train(blocks, dense, tmp_path, monkeypatch, masks):
    workers, learners = [], []
    launch, update = Outer.launch, MetaLearner.update

    def watched_launch(self, step, model, *rest):
        workers.append((step, copy.deepcopy(dict(model.state_dict()))))
        launch(self, step, model, *rest)

    def watched_update(self, snapshot, evidence):
        answer = update(self, snapshot, evidence)
        learners.append((snapshot.step, copy.deepcopy(dict(self._model.state_dict()))))
        return answer

    monkeypatch.setattr(Outer, "launch", watched_launch)
    monkeypatch.setattr(MetaLearner, "update", watched_update)
    run(blocks, tmp_path, dense, objectives={"mlm": {}, "dtd": {}}, meta=LEARNED, masks=masks)
    assert [step for step, _ in learners] == [step for step, _ in workers] == [0, 3, 6, 9]
    for (_, ours), (_, theirs) in zip(workers, learners, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    if "iterative" in masks:  # the first level goes before the first update, after the first snapshot
        assert [density_of(state) for _, state in learners] == pytest.approx([1, 0.8, 0.6, 0.4], abs=1e-3)


def density_of(state) -> float:
    """Kept masked weights over all masked weights, by the definition M = [S > theta]."""
    names = [name.removesuffix(".scores") for name in state if name.endswith(".scores")]
    kept = [state[f"{name}.scores"] > state[f"{name}.threshold"] for name in names]
    return sum(int(one.sum()) for one in kept) / sum(one.numel() for one in kept)


def test_plain_joint_training_moves_weights_and_scores(blocks, dense, tmp_path):
    masks = {**MASKS, "train": ["scores", "weights", "heads"]}
    run(blocks, tmp_path, dense, masks=masks)
    saved = load_masks(tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert fit(saved, model)  # the hash is that of the trained weights
    attach_scores(model, {name: scores_of_mask(mask) for name, mask in fit(saved, model).items()})
    before = load_file(dense / "model.safetensors")[WORD]
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, before)


def test_the_published_optimiser_trains_scores_in_the_loop(blocks, dense, tmp_path):
    train = {"optimizer": {"kind": "bert_adam", "lr": 1e-2, "weight_decay": 0.01}, "clip": 0}
    assert run(blocks, tmp_path, dense, **{**KD, "train": train})["steps"] == 12


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("tamt")])
def test_every_recipe_is_a_valid_configuration(name):
    config = load_run_config(name, {})
    assert config.masks is not None
    assert config.name == name
