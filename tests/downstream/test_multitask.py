"""Multi-task fine-tuning from a saved model and files on disk: training, resuming, choosing, exporting."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from killed_multitask import whole_and_killed
from tiny_tasks import own_tasks, saved_encoder, write_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from mlpt.downstream.loading import load_tokenizer
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.model import TaskView
from mlpt.downstream.multitask.results import RunningBest, table
from mlpt.downstream.multitask.run import run_multitask
from mlpt.downstream.multitask.saving import export_stock_classifier, load_multitask_model
from mlpt.errors import UserError
from mlpt.models.conditional.encoder import ConditionalEncoder
from mlpt.settings import load_settings
from mlpt.sparsity.artefacts import MaskFile, base_hash, save_masks
from mlpt.tasks import TaskSource, load_task
from mlpt.training.schedule import learning_rate
from mlpt.training.tracker import read_metrics

SAMPLERS = {
    "mt_uncertainty": {"rule": "mt_uncertainty", "rescore_every": 2},
    "proportional": {"rule": "proportional"},
    "mometas": {"rule": "policy", "interval": 3, "learner": {"rule": "mometas"}},
    "exp3": {"rule": "policy", "interval": 3, "learner": {"rule": "exp3"}},
    # Updates at the very steps of checkpoints.
    "dga": {"rule": "policy", "interval": 5, "learner": {"rule": "dga", "scale": "plain"}, "lookahead": {"start": 0}},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return saved_encoder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> dict:
    return own_tasks(tmp_path_factory.mktemp("tasks"))


def configured(saved: str, source: dict, out: Path, **settings) -> MultitaskConfig:
    defaults = {
        "model": saved,
        "tasks": ["mood", "same", "grade"],
        "source": source,
        "out": str(out),
        "conditional": {"max_length": 16},
        "batch_size": 8,
        "max_steps": 12,
        "evaluate_every": 6,
        "optimizer": {"lr": 1e-3},
    }
    return load_settings(MultitaskConfig, defaults | settings)


def quiet(text: str) -> None:
    pass


@pytest.mark.parametrize("encoder", ["conditional", "shared"])
def test_training_learns_what_saying_the_same_of_every_row_cannot(saved, source, tmp_path, encoder):
    settings = {"sampler": {"rule": "uniform"}, "optimizer": {"lr": 3e-3}, "freeze": "none", "batch_size": 16}
    config = configured(saved, source, tmp_path / "run", encoder=encoder, max_steps=100, evaluate_every=50, **settings)
    result = run_multitask(config, quiet)
    assert result.majority["grade"]["dev"]["pearson"] == 0
    assert result.best["grade"]["dev"]["pearson"] > 0.6
    assert set(result.best) == set(result.last) == {"mood", "same", "grade"}
    assert sum(trained for trained, _ in result.rows.values()) == 100 * 16


@pytest.mark.parametrize("rule", list(SAMPLERS))
def test_a_killed_run_goes_on_to_the_very_same_weights(saved, source, tmp_path, monkeypatch, rule):
    def config(name: str) -> MultitaskConfig:
        return configured(saved, source, tmp_path / name, sampler=SAMPLERS[rule], checkpoint_every=5)

    whole, resumed, said = whole_and_killed(config, monkeypatch)
    assert any("going on from step 5" in line for line in said)
    assert resumed.best == whole.best
    assert resumed.rows == whole.rows
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    weights = [load_multitask_model(tmp_path / name / "model").state_dict() for name in ("whole", "killed")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=0)


def test_a_finished_run_is_read_back_and_another_configuration_is_refused(saved, source, tmp_path):
    config = configured(saved, source, tmp_path / "run", max_steps=2)
    result = run_multitask(config, quiet)
    said: list[str] = []
    assert run_multitask(config, said.append) == result
    assert said == [f"{tmp_path / 'run'} is finished; results: {tmp_path / 'run' / 'results.json'}", table(result)]
    with pytest.raises(UserError, match=r"other settings or data \(seed\)"):
        run_multitask(config.model_copy(update={"seed": 1}), quiet)


def test_a_run_of_a_version_that_wrote_the_usual_floor_is_read_back(saved, source, tmp_path):
    def of(**floor):
        sampler = {"rule": "policy", "learner": {"rule": "loss_ratio", **floor}}
        return configured(saved, source, tmp_path / "run", max_steps=2, sampler=sampler)

    result = run_multitask(of(floor=0.02), quiet)
    assert run_multitask(of(), quiet) == result
    with pytest.raises(UserError, match=r"other settings or data \(sampler\)"):
        run_multitask(of(floor=0.03), quiet)


@pytest.mark.parametrize("changed", ["rows", "model"])
def test_a_finished_run_is_no_answer_for_other_rows_or_another_model(tmp_path, changed):
    saved, source = saved_encoder(tmp_path / "model"), own_tasks(tmp_path)
    run_multitask(configured(saved, source, tmp_path / "run", max_steps=2), quiet)
    if changed == "rows":
        file = tmp_path / "mood_dev.jsonl"
        file.write_text(file.read_text().replace("the", "a"))
    else:
        model = BertForMaskedLM.from_pretrained(saved)
        torch.nn.init.ones_(model.bert.embeddings.LayerNorm.bias)
        model.save_pretrained(saved)
    with pytest.raises(UserError, match="rows of mood/dev" if changed == "rows" else r"\(model\)"):
        run_multitask(configured(saved, source, tmp_path / "run", max_steps=2), quiet)


def test_dev_predictions_are_written_for_every_task(saved, source, tmp_path):
    result = run_multitask(configured(saved, source, tmp_path / "run", max_steps=4), quiet)
    for task in ("mood", "same"):
        lines = (tmp_path / "run" / "predictions" / f"{task}_dev.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 16
        right = sum(row["prediction"] == row["label"] for row in rows) / len(rows)
        assert right == pytest.approx(result.best[task]["dev"]["accuracy"])
    assert "prediction" in json.loads((tmp_path / "run" / "predictions" / "grade_dev.jsonl").read_text().split("\n")[0])


def test_rows_shorter_than_asked_are_told_and_recorded(saved, source, tmp_path):
    said: list[str] = []
    config = configured(saved, source, tmp_path / "run", encoder="shared", conditional={"max_length": 64}, max_steps=1)
    result = run_multitask(config, said.append)
    assert "conditional.max_length 64 lowered to 30, the model's positions" in said  # what its tokenizer says it takes
    assert result.max_length == 30
    assert f"results go to {tmp_path / 'run'}" in said


def test_progress_is_shown_step_by_step(saved, source, tmp_path):
    shown: list[tuple] = []
    config = configured(saved, source, tmp_path / "run", max_steps=4, evaluate_every=2)
    run_multitask(config, quiet, show=lambda *one: shown.append(one))
    assert [one[:3] for one in shown] == [("fine-tuning on all tasks", step, 4) for step in range(1, 5)]
    assert shown[-1][3].startswith("best mean 0.")


def test_both_ways_of_choosing_are_reported(saved, source, tmp_path):
    said: list[str] = []
    result = run_multitask(configured(saved, source, tmp_path / "run", max_steps=20, evaluate_every=4), said.append)
    assert [line.split()[0] for line in said[-1].splitlines()] == ["task", "mood", "same", "grade"]
    evaluations = [line["dev"] for line in read_metrics(tmp_path / "run") if "dev" in line]
    assert len(evaluations) == 5
    for task, metric in (("mood", "accuracy"), ("same", "macro_f1"), ("grade", "pearson")):
        values = [one[task]["dev"][metric] for one in evaluations]
        assert result.running_best[task]["dev"][metric] == max(values)
        assert result.last[task]["dev"][metric] == values[-1]
    assert result.best == evaluations[result.best_step // 4 - 1]


def test_the_running_best_keeps_each_metrics_maximum_and_a_losss_last_value():
    running = RunningBest()
    for mcc, loss in ((0.5, 0.3), (0.4, 0.4)):
        running.update({"cola": {"dev": {"matthews": mcc, "loss": loss}}})
    assert running.scores == {"cola": {"dev": {"matthews": 0.5, "loss": 0.4}}}


def test_the_default_schedule_has_the_published_factors():
    schedule = MultitaskConfig(model="m", tasks=("a",)).schedule
    for step, factor in {0: 0, 1: 0.01, 50: 0.5, 100: 1, 550: 0.5, 1000: 0}.items():
        assert learning_rate(schedule, step, 1000, 1.0) == pytest.approx(factor)


def mnli_folder(folder: Path) -> Path:
    (folder / "MNLI").mkdir(parents=True)
    header = "index\tsentence1\tsentence2\tgold_label\n"
    labels = ["contradiction", "entailment", "neutral"]
    for split, rows in (("train", 12), ("dev_matched", 6), ("dev_mismatched", 9)):
        lines = [f"{i}\tthe cat sat\tthe dog ran\t{labels[i % 3]}\n" for i in range(rows)]
        (folder / "MNLI" / f"{split}.tsv").write_text(header + "".join(lines))
    return folder


def test_mnli_is_scored_on_both_of_its_dev_splits(saved, tmp_path):
    source = {"data_dir": str(mnli_folder(tmp_path / "GLUE"))}
    result = run_multitask(configured(saved, source, tmp_path / "run", tasks=["mnli"], max_steps=2), quiet)
    assert set(result.best["mnli"]) == {"dev_matched", "dev_mismatched"}


@pytest.mark.parametrize("roberta", [False, True])
def test_a_plain_encoder_is_exported_as_stock_classifiers_with_equal_logits(source, tmp_path, roberta):
    saved = saved_encoder(tmp_path / "model", roberta)
    run_multitask(configured(saved, source, tmp_path / "run", encoder="shared", max_steps=2), quiet)
    model = load_multitask_model(tmp_path / "run" / "model")
    ids = torch.tensor([[2, 5, 9, 11, 3, 8, 3, 0], [2, 6, 3, 7, 8, 9, 10, 3]])
    mask = (ids != 0).long()
    for task, name in enumerate(["mood", "same", "grade"]):
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "stock" / name).eval()
        torch.testing.assert_close(
            stock(ids, attention_mask=mask).logits, TaskView(model, task)(ids, mask).logits, atol=1e-5, rtol=1e-4
        )
    assert stock.config.problem_type == "regression"
    named = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "stock" / "same").config
    assert named.id2label == {0: "x", 1: "y", 2: "z"}
    assert len(load_tokenizer(str(tmp_path / "run" / "stock" / "same"))) == 20


def test_a_conditional_model_is_loaded_back_whole_and_has_no_stock_class(saved, source, tmp_path):
    result = run_multitask(configured(saved, source, tmp_path / "run", max_steps=2), quiet)
    model = load_multitask_model(tmp_path / "run" / "model")
    assert isinstance(model.encoder, ConditionalEncoder)
    assert sum(parameter.numel() for parameter in model.parameters()) == result.parameters["total"]
    task = load_task("mood", TaskSource.model_validate(source)).task
    with pytest.raises(UserError, match="no stock class"):
        export_stock_classifier(model, task, tmp_path / "stock")


def test_a_roberta_encoder_is_conditioned_too(source, tmp_path):
    saved = saved_encoder(tmp_path / "model", roberta=True)
    result = run_multitask(configured(saved, source, tmp_path / "run", max_steps=2), quiet)
    assert result.steps == 2


@pytest.mark.parametrize("dense", [False, True])
def test_masks_beside_the_model_are_kept_unless_it_is_to_be_dense(source, tmp_path, dense):
    saved = saved_encoder(tmp_path / "model")
    name = "bert.encoder.layer.1.output.dense.weight"
    stock = BertForMaskedLM.from_pretrained(saved)
    kept = torch.rand(32, 48) < 0.5
    save_masks(MaskFile.of({name: kept}, "random", base_hash=base_hash(stock, [name])), Path(saved))
    said: list[str] = []
    run_multitask(configured(saved, source, tmp_path / "run", max_steps=2, dense=dense), said.append)
    assert any("under the masks beside the model" in line for line in said) != dense
    trained = load_multitask_model(tmp_path / "run" / "model").encoder.get_parameter(name.removeprefix("bert."))
    assert bool(trained[~kept].any()) == dense


@pytest.mark.parametrize(("last_layer", "kind"), [("loaded", "adamw"), ("random", "adamw"), ("loaded", "muon")])
def test_pruned_weights_stay_zero_and_the_others_train(saved, source, tmp_path, last_layer, kind):
    name = "encoder.layer.1.output.dense.weight"
    stock = BertModel.from_pretrained(saved)
    kept = torch.rand(32, 48) < 0.5
    masks = MaskFile.of({name: kept}, "random", base_hash=base_hash(stock, [name]))
    settings = {"conditional": {"max_length": 16, "last_layer": last_layer}, "masks": str(save_masks(masks, tmp_path))}
    run_multitask(configured(saved, source, tmp_path / "run", optimizer={"kind": kind}, **settings), quiet)
    trained = load_multitask_model(tmp_path / "run" / "model").encoder.get_parameter(name)
    assert torch.equal(trained == 0, ~kept)
    assert not torch.equal(trained, stock.get_parameter(name) * kept)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({}, True),
        ({"freeze": "none"}, False),
        ({"encoder": "shared"}, False),
        ({"encoder": "shared", "freeze": "0-0"}, True),
    ],
)
def test_the_lower_half_of_conditional_encoders_is_frozen_unless_asked_otherwise(
    saved, source, tmp_path, settings, frozen
):
    result = run_multitask(configured(saved, source, tmp_path / "run", max_steps=1, **settings), quiet)
    assert (result.parameters["trainable"] < result.parameters["total"]) == frozen


def test_one_switch_turns_the_published_quirks_on_and_a_named_setting_wins():
    base = {"model": "m", "tasks": ["cola"], "published": True}
    plain = load_settings(MultitaskConfig, base)
    assert (plain.sampler.rule, plain.freeze, plain.label_dtype) == ("proportional", "none", "first_row")
    assert (plain.conditional.norm, plain.conditional.last_layer) == ("scale", "random")
    assert (plain.modulation, plain.scoring.precision, plain.scoring.dropout) == ("frozen", "float32", "as_trained")
    assert (plain.precision, plain.batch_size, plain.clip, plain.epochs) == ("float32", 8, 1.0, 3.0)
    optimizer = plain.optimizer  # transformers' AdamW with its own defaults (specification 2.8)
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay) == ("transformers_adamw", 5e-5, 0.0)
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
    readme = load_settings(MultitaskConfig, base | {"optimizer": {"lr": 2e-5}}).optimizer
    assert readme == optimizer.model_copy(update={"lr": 2e-5})
    sampled = load_settings(MultitaskConfig, base | {"sampler": {"rule": "mt_uncertainty"}, "freeze": "0-5"})
    assert (sampled.sampler.score, sampled.sampler.regression, sampled.sampler.rescore_every) == ("code", "zero", 1)
    assert (sampled.label_dtype, sampled.freeze) == ("task", "0-5")
    chosen = load_settings(MultitaskConfig, base | {"conditional": {"last_layer": "loaded"}, "batch_size": 32})
    assert (chosen.conditional.norm, chosen.conditional.last_layer, chosen.batch_size) == ("scale", "loaded", 32)
    resolved = json.loads(sampled.model_dump_json())
    assert load_settings(MultitaskConfig, resolved) == sampled


def test_without_the_switch_every_quirk_is_mended_and_sampling_and_freezing_are_on():
    config = MultitaskConfig(model="m", tasks=("cola",))
    assert (config.sampler.rule, config.sampler.score, config.freeze) == ("mt_uncertainty", "paper", "lower_half")
    assert (config.conditional.norm, config.conditional.last_layer) == ("scale_and_shift", "loaded")
    assert (config.modulation, config.label_dtype) == ("trainable", "task")


def test_a_published_run_trains(saved, source, tmp_path):
    config = configured(saved, source, tmp_path / "run", published=True, sampler={"rule": "mt_uncertainty"})
    result = run_multitask(config, quiet)
    assert result.rows["grade"][0] == 0  # a regression without MRPC to borrow from is never chosen, as published


def test_the_policys_draws_follow_its_mixture(saved, source, tmp_path):
    sampler = {"rule": "policy", "interval": 6, "learner": {"rule": "fixed", "weights": {"mood": 1, "same": 1}}}
    result = run_multitask(configured(saved, source, tmp_path / "run", sampler=sampler), quiet)
    trained = Counter({name: rows for name, (rows, _) in result.rows.items()})
    assert trained["grade"] == 0
    assert trained["mood"] + trained["same"] == 12 * 8


def test_a_model_without_a_pooler_is_refused_in_one_line(source, tmp_path):
    folder = tmp_path / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ids = {f"{name}_token_id": place for place, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    config = ModernBertConfig(vocab_size=write_tokenizer(folder), max_position_embeddings=40, **sizes, **ids)
    ModernBertForMaskedLM(config).save_pretrained(folder)
    with pytest.raises(UserError, match="built like BERT or RoBERTa"):
        run_multitask(configured(str(folder), source, tmp_path / "run", encoder="shared"), quiet)
