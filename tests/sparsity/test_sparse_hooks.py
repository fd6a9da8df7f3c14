"""Threshold resets and iterative pruning between the steps of a loop. Vectors: specs, B3, B9."""

import pytest
import torch
from tiny_bert import tiny_bert, token_batch

from mlpt.errors import UserError
from mlpt.models.hooks import StepHook
from mlpt.models.masked import (
    attach_scores,
    backbone_of,
    current_masks,
    maskable_weights,
    masked_modules,
    scores_of,
    set_trainable,
)
from mlpt.sparsity.artefacts import base_hash, load_masks
from mlpt.sparsity.config import MaskConfig, mask_encoder, mask_hooks
from mlpt.sparsity.hooks import IterativePruning, MaskSaver, ThresholdReset
from mlpt.sparsity.making import pruned_count
from mlpt.sparsity.schedule import IterativeConfig, ResetConfig
from mlpt.sparsity.scores import initial_scores


def masked(**trainable):
    model = tiny_bert()
    attach_scores(model, initial_scores(maskable_weights(model), 0.0 if trainable.get("weights") else 0.7))
    set_trainable(model, **{"weights": False, "scores": False, "heads": True, **trainable})
    return model


def train(model, hooks: list[StepHook], steps: int, start: int = 0, optimizer=None):
    """A plain loop with the hook protocol of `mlpt.models.hooks`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0)
    rates = []
    for step in range(start, start + steps):
        for hook in hooks:
            hook.before_step(step, model, optimizer)
        rates.append(hooks[0].schedule_step(step))
        tokens = token_batch(seed=step)
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        for hook in hooks:
            hook.after_step(step + 1, model, optimizer)
    return optimizer, rates


def zeros(model):
    return [int((~mask).sum()) for mask in current_masks(model).values()]


def test_sparsity_drifts_between_resets_and_is_exact_at_them_and_at_saves(tmp_path):
    model = masked(scores=True)
    target = [pruned_count(mask.numel(), 0.7) for mask in current_masks(model).values()]
    save = MaskSaver(model, tmp_path, "tamt_mlm", sparsity=0.7)
    hook = ThresholdReset(ResetConfig(interval=4), 0.7, save=save)
    optimizer, _ = train(model, [hook], 3)
    assert zeros(model) != target
    train(model, [hook], 1, start=3, optimizer=optimizer)
    assert zeros(model) == target
    train(model, [hook], 2, start=4, optimizer=optimizer)
    assert zeros(model) != target
    drifted = {name: value.clone() for name, value in model.state_dict().items()}
    with hook.as_saved(model):
        assert zeros(model) == target
        hook.save(6, model)
    assert all(torch.equal(drifted[name], value) for name, value in model.state_dict().items())
    saved = load_masks(tmp_path / "step_6")
    assert [int((~mask).sum()) for mask in saved.masks.values()] == target
    assert saved.description.step == 6
    assert saved.description.base_hash == base_hash(tiny_bert(), list(saved.masks))


def published_counts(size):
    """Pruned weights of a matrix after 10, 20 and 30 %: a tenth, a ninth, an eighth of what is left, each rounded."""
    pruned = []
    for part in (10, 9, 8):
        before = pruned[-1] if pruned else 0
        pruned.append(before + round((size - before) / part))
    return pruned


def test_iterative_pruning_has_the_published_counts_and_restarts_optimiser_and_schedule(tmp_path):
    model = masked(weights=True)
    config = IterativeConfig(interval=2, levels=(0.1, 0.2, 0.3), rewind="code")
    hook = IterativePruning(config, model, MaskSaver(model, tmp_path, "imp"))
    sizes = [module.weight.numel() for module in masked_modules(model).values()]
    expected = [published_counts(size) for size in sizes]
    optimizer, rates = train(model, [hook], 2)
    assert zeros(model) == [counts[1] for counts in expected]
    assert len(optimizer.state) == 0
    _, more = train(model, [hook], 4, start=2, optimizer=optimizer)
    assert rates + more == [0, 1, 0, 1, 0, 1]
    assert zeros(model) == [counts[2] for counts in expected]
    for label, level in (("0.1", 0), ("0.3", 2)):
        saved = load_masks(tmp_path / label)
        assert [int((~mask).sum()) for mask in saved.masks.values()] == [counts[level] for counts in expected]
        assert saved.description.sparsity == float(label)
        assert saved.description.base_hash == base_hash(tiny_bert(), list(saved.masks))


@pytest.mark.parametrize("rewind", ["paper", "code"])
def test_rewinding_brings_the_body_back_as_the_paper_says_and_not_as_the_code_does(rewind):
    model, start = masked(weights=True), tiny_bert().state_dict()
    hook = IterativePruning(IterativeConfig(interval=3, levels=(0.1, 0.5), rewind=rewind), model)
    train(model, [hook], 3)
    weights = backbone_of(model).state_dict()
    body = [name for name in start if name.startswith("bert.") and start[name].is_floating_point()]
    rewound = [torch.equal(weights[name], start[name]) for name in body]
    assert all(rewound) if rewind == "paper" else not any(rewound)
    assert not torch.equal(
        weights["cls.predictions.transform.dense.weight"], start["cls.predictions.transform.dense.weight"]
    )


def test_pruned_weights_get_no_gradient_and_stay_pruned():
    model = masked(weights=True)
    hook = IterativePruning(IterativeConfig(interval=100, levels=(0.5,)), model)
    optimizer, _ = train(model, [hook], 1)
    name, module = "bert.encoder.layer.0.output.dense.weight", masked_modules(model)
    pruned = ~current_masks(model)[name]
    before = module[name].weight.detach().clone()
    train(model, [hook], 2, start=1, optimizer=optimizer)
    assert torch.equal(module[name].weight[pruned], before[pruned])
    assert not torch.equal(module[name].weight[~pruned], before[~pruned])


def test_a_resumed_iterative_run_ends_with_the_same_masks():
    config = IterativeConfig(interval=2, levels=(0.2, 0.4, 0.6))
    whole = masked(weights=True)
    train(whole, [IterativePruning(config, whole)], 5)

    first = masked(weights=True)
    hook = IterativePruning(config, first)
    optimizer, _ = train(first, [hook], 3)
    second = masked(weights=True)
    resumed = IterativePruning(config, second)
    second.load_state_dict(first.state_dict())
    resumed.load_state(*hook.state())
    restored = torch.optim.AdamW([p for p in second.parameters() if p.requires_grad], lr=5e-3, weight_decay=0)
    restored.load_state_dict(optimizer.state_dict())
    train(second, [resumed], 2, start=3, optimizer=restored)
    for name, mask in current_masks(whole).items():
        assert torch.equal(mask, current_masks(second)[name])


def test_a_masked_encoder_is_made_from_settings():
    model = tiny_bert()
    mask_encoder(MaskConfig(sparsity=0.5), model, None, seed=0)
    assert len(scores_of(model)) == 14
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "bert.pooler.dense.scores" not in trained
    assert "bert.encoder.layer.1.output.dense.scores" in trained
    assert "cls.predictions.bias" in trained
    assert "bert.embeddings.word_embeddings.weight" not in trained


def test_masks_can_start_from_a_file_and_resets_keep_its_counts(tmp_path):
    model = tiny_bert()
    config = MaskConfig(sparsity=0.5, scope="global", modules="encoder")
    mask_encoder(config, model, None, seed=0)
    counts = zeros(model)
    assert len(set(counts)) > 3  # a global cut gives each matrix its own
    MaskSaver(model, tmp_path, "global")("masks", model, 0)
    again = tiny_bert()
    from_file = MaskConfig(init="file", file=str(tmp_path / "masks"), modules="encoder", reset=ResetConfig(interval=1))
    mask_encoder(from_file, again, None, seed=0)
    (hook,) = mask_hooks(from_file, again, seed=0, out=None, base=None)
    train(again, [hook], 2)
    assert zeros(again) == counts
    with pytest.raises(UserError, match="has no mask of"):
        mask_encoder(from_file.model_copy(update={"modules": "tamt"}), tiny_bert(), None, seed=0)


def test_a_pooler_in_the_pretrained_folder_is_used(tmp_path):
    from transformers import BertModel

    whole = BertModel(tiny_bert().config)
    whole.save_pretrained(tmp_path)
    model = tiny_bert()
    mask_encoder(MaskConfig(), model, str(tmp_path), seed=0)
    assert torch.equal(model.bert.pooler.dense.weight, whole.pooler.dense.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "less than 1"),
        ({"init": "file"}, "go together"),
        ({"iterative": {}}, "trains weights"),
        ({"iterative": {}, "train": ["weights"], "structured": "heads"}, "unstructured"),
        ({"train": []}, "at least one"),
    ],
)
def test_impossible_settings_are_one_line(settings, message):
    from mlpt.settings import load_settings

    with pytest.raises(UserError, match=message) as caught:
        load_settings(MaskConfig, settings, "masks")
    assert "\n" not in str(caught.value)
