"""The step loop in one process: resuming bit for bit, world sizes, draws, precision, and what stops it."""

import json
from pathlib import Path

import pytest
import torch
from killing import KilledError, killed_at
from ranks import run_ranks
from running import run
from safetensors.torch import load_file

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.meta.learner import MetaLearner
from mlpt.run.build import run_rank
from mlpt.settings import load_settings, merge
from mlpt.stopping import RunStopped
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.compiling import why_not_compile
from mlpt.training.group import Group
from mlpt.training.tracker import read_metrics

TINY = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "objectives": ["mlm", "atd", "dtd", "cse"],
    "meta": {"interval": 4, "lag": 2, "rules": {"mixture": {"rule": "mometas"}}},
    "train": {
        "steps": 16,
        "batch_size": 8,
        "log_every": 1,
        "evaluate_batches": 2,
        "checkpoint_every": 4,
        "keep": 10,
    },
    "report": {"tensorboard": False},
}


def config_with(**changes) -> RunConfig:
    return load_settings(RunConfig, merge(TINY, changes))


def losses(folder: Path) -> list[tuple]:
    """Everything in metrics.jsonl that doesn't tell the time."""
    kept = ("step", "loss", "held_out", "held_out_before", "dev", "mixture", "policy")
    return [tuple(json.dumps(line.get(key)) for key in kept) for line in read_metrics(folder)]


@pytest.mark.parametrize("lag", [0, 2, 4])
@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_a_resumed_run_repeats_the_losses_bit_for_bit(small_blocks, tmp_path, lag, step):
    config = config_with(meta={"lag": lag})
    whole = run(config, small_blocks, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path / "killed", must_save=killed_at(step))
    resumed = run(config, small_blocks, tmp_path / "killed")
    assert resumed["resumed_at"] == (step - 1) // 4 * 4  # killed before the checkpoint of this very step
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert resumed["held_out"] == whole["held_out"]
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_between_the_boundaries_keeps_the_answer_that_is_under_way(small_blocks, tmp_path):
    config = config_with(meta={"lag": 3})
    run(config, small_blocks, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(
            config,
            small_blocks,
            tmp_path / "killed",
            must_save=lambda step: step == 6 or (step == 8 and killed_at(8)(8)),  # saved at 6: launched at 4, due at 7
        )
    assert (tmp_path / "killed/checkpoints/step_00000006").is_dir()
    resumed = run(config, small_blocks, tmp_path / "killed")
    assert resumed["resumed_at"] == 6
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_steps_but_not_the_run(small_blocks, tmp_path):
    config = config_with()
    run(config, small_blocks, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path / "killed", must_save=killed_at(10))
    (tmp_path / "killed/checkpoints/step_00000008/model.safetensors").write_bytes(b"torn")
    warnings = []
    resumed = run(config, small_blocks, tmp_path / "killed", tell=warnings.append)
    assert resumed["resumed_at"] == 4
    assert "step_00000008 is damaged" in next(event["text"] for event in warnings if event["event"] == "warning")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def rank_main(group: Group, values: dict, blocks: str, folder: str) -> None:
    run_rank(RunConfig.model_validate(values), blocks, Path(folder), group)


@pytest.mark.parametrize("draw", ["step", "stratified"])
def test_two_ranks_train_like_one_by_default(small_blocks, tmp_path, draw):
    config = config_with(train={"draw": draw})
    assert config.train.micro_batches == 2
    run(config, small_blocks, tmp_path / "one")
    (tmp_path / "two").mkdir()
    run_ranks(rank_main, config.model_dump(), small_blocks, str(tmp_path / "two"))
    one, two = ([line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert len(one) == len(two) == 16
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


def test_a_run_goes_on_from_the_same_token_at_another_world_size(small_blocks, tmp_path):
    config = config_with()
    run(config, small_blocks, tmp_path / "one")
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path / "grown", must_save=killed_at(10))
    run_ranks(rank_main, config.model_dump(), small_blocks, str(tmp_path / "grown"))
    one, grown = (
        [(line["tokens"], line["loss"]) for line in read_metrics(tmp_path / name) if "loss" in line]
        for name in ("one", "grown")
    )
    assert [tokens for tokens, _ in grown] == [tokens for tokens, _ in one]
    for (_, ours), (_, theirs) in zip(one, grown, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


def test_weighted_draws_train_every_objective_in_every_step(small_blocks, tmp_path):
    exp3 = {"rules": {"mixture": {"rule": "exp3"}}}
    run(config_with(meta=exp3, train={"draw": "weighted", "steps": 4}), small_blocks, tmp_path)
    assert all(set(line["loss"]) == {"mlm", "atd", "dtd", "cse"} for line in read_metrics(tmp_path) if "loss" in line)


def test_bf16_trains_close_to_float32(small_blocks, tmp_path):
    for precision in ("float32", "bf16"):
        run(config_with(train={"precision": precision}), small_blocks, tmp_path / precision)
    full, half = (read_metrics(tmp_path / name)[-1]["held_out"] for name in ("float32", "bf16"))
    assert half == pytest.approx(full, rel=0.02)
    assert half != full


def test_the_best_checkpoint_on_meta_dev_outlives_its_age(small_blocks, tmp_path):
    run(config_with(train={"evaluate_every": 4, "keep": 1}), small_blocks, tmp_path)
    dev = {line["step"]: line["dev"]["mlm"] for line in read_metrics(tmp_path) if "dev" in line}
    best = min(dev, key=dev.get)
    assert json.loads((tmp_path / "checkpoints/best.json").read_text()) == {"step": best}
    assert (tmp_path / f"checkpoints/step_{best:08d}/COMMITTED").is_file()


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(small_blocks, tmp_path):
    with pytest.raises(UserError, match=r"loss is not finite at step \d+; .* lower train\.optimizer\.lr"):
        run(config_with(train={"optimizer": {"lr": 1e18}, "clip": 0, "steps": 40}), small_blocks, tmp_path)


def test_the_figures_of_a_resumed_run_are_those_of_the_whole_run(small_blocks, tmp_path):
    config = config_with()
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path, must_save=killed_at(10))
    before = Checkpoints(tmp_path / "checkpoints").load(8).state
    summary = run(config, small_blocks, tmp_path)
    training, busy = before["seconds"]
    assert 0 < training < summary["seconds"] < summary["busy_seconds"]
    assert busy < summary["busy_seconds"]
    assert summary["tokens_per_second"] == pytest.approx(16 * 8 * 32 / summary["seconds"])
    for kind, seconds in before["outer"]["seconds"].items():
        assert 0 < seconds < summary["meta"][kind]
    learner = [line["meta"]["seconds"] for line in read_metrics(tmp_path) if "meta" in line]
    assert summary["meta"]["learner"] == pytest.approx(sum(learner))


def test_checkpoints_come_as_often_as_asked_for_whatever_the_meta_learner_does(small_blocks, tmp_path):
    run(config_with(train={"steps": 9, "checkpoint_every": 3}), small_blocks, tmp_path)  # updates every 4
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3, 6, 9]


def test_a_run_that_should_stop_saves_the_step_under_way_and_goes_on_bit_for_bit(small_blocks, tmp_path):
    config = config_with(meta={"lag": 3})
    run(config, small_blocks, tmp_path / "whole")
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) == 6  # after step 6, with an update under way since step 4

    with pytest.raises(RunStopped) as stopped:
        run(config, small_blocks, tmp_path / "stopped", should_stop=should_stop)
    assert stopped.value.step == 6
    assert Checkpoints(tmp_path / "stopped/checkpoints").steps() == [4, 6]
    assert run(config, small_blocks, tmp_path / "stopped")["resumed_at"] == 6
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_checkpoint_of_another_version_is_one_line(small_blocks, tmp_path):
    config = config_with(train={"steps": 4})
    run(config, small_blocks, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    found = checkpoints.load(4)
    state = {key: value for key, value in found.state.items() if key != "nonfinite"}
    checkpoints.save(4, state, found.tensors)
    checkpoints.wait()
    with pytest.raises(UserError, match="has no 'nonfinite': another version of mlpt wrote it"):
        run(config_with(train={"steps": 8}), small_blocks, tmp_path)


def test_a_token_budget_sets_the_steps(small_blocks, tmp_path):
    summary = run(config_with(train={"tokens": 1000}), small_blocks, tmp_path)
    assert summary["steps"] == 4  # ceil(1000 / (8 blocks of 32 tokens))


def test_what_is_trained_on_is_learned(small_blocks, tmp_path):
    summary = run(
        config_with(
            objectives=["mlm"],
            meta={"rules": {"mixture": {"rule": "uniform"}}},
            train={"steps": 150, "optimizer": {"lr": 5e-3}, "log_every": 50},
        ),
        small_blocks,
        tmp_path,
    )
    assert summary["held_out"]["mlm"] < summary["held_out_before"]["mlm"] - 0.3


@pytest.mark.parametrize("draw", ["step", "stratified", "weighted"])
def test_the_evidence_counts_steps_however_a_step_is_cut(small_blocks, tmp_path, monkeypatch, draw):
    seen = []
    update = MetaLearner.update

    def watched(self, snapshot, evidence):
        seen.append(dict(evidence.draws))
        assert sum(evidence.expected.values()) == pytest.approx(sum(evidence.draws.values()))
        return update(self, snapshot, evidence)

    monkeypatch.setattr(MetaLearner, "update", watched)
    run(config_with(meta={"rules": {"mixture": {"rule": "exp3"}}}, train={"draw": draw}), small_blocks, tmp_path)
    assert seen[0] == {}
    assert [sum(draws.values()) for draws in seen[1:]] == pytest.approx([4.0] * 3)  # the interval
    if draw == "step":
        assert all(float(count).is_integer() for draws in seen for count in draws.values())


def test_without_a_compiler_a_run_says_so_and_trains_on(small_blocks, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    told = []
    run(config_with(train={"compile": True, "steps": 2}), small_blocks, tmp_path, tell=told.append)
    assert "train.compile has no effect" in next(event["text"] for event in told if event["event"] == "warning")


def test_a_run_with_fixed_shapes_trains_like_the_plain_one(small_blocks, tmp_path):
    for fixed in (False, True):
        changes = {"train": {"fixed_shapes": fixed, "steps": 6}}
        run(config_with(**changes), small_blocks, tmp_path / str(fixed))
    plain, ours = (
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("False", "True")
    )
    assert len(plain) == 6
    for one, other in zip(plain, ours, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_trains_like_the_plain_one(small_blocks, tmp_path, mode):
    if why_not_compile(torch.device("cpu")) is not None:
        pytest.skip("needs a C++ compiler")
    for compiled in (False, True):
        run(
            config_with(
                train={"compile": compiled, "compile_mode": mode if compiled else "default", "steps": 4},
                model={"dropout": 0.0},
                objectives=["mlm"],
            ),
            small_blocks,
            tmp_path / str(compiled),
        )
    plain, fast = (
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("False", "True")
    )
    for ours, theirs in zip(plain, fast, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
