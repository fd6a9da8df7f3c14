"""Fine-tuning a tiny saved model on the documentation tasks, from start to results."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlpt.cli import run
from mlpt.data.tokenizers import train_tokenizer
from mlpt.downstream.cell_run import CellRun
from mlpt.downstream.config import FinetuneCell, FinetuneConfig, cells
from mlpt.downstream.finetune import evaluate_saved, finetune, prepare, run_cell
from mlpt.downstream.loading import build_model, load_base
from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.sparsity.artefacts import MaskFile, base_hash, save_masks
from mlpt.sparsity.making import magnitude_masks
from mlpt.tasks import TASKS, TaskSource, load_task
from mlpt.training.group import Group
from mlpt.training.optimizer import OptimizerConfig


def weights_of(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def quiet(_):
    pass


def test_a_learnable_task_is_learned(settings, tmp_path):
    config = settings(tmp_path, max_steps=60)
    (result,) = finetune(config, quiet)
    assert result.majority["dev"]["accuracy"] == 0.5
    assert result.best["dev"]["accuracy"] > 0.95


def test_results_predictions_and_a_stock_model_are_left_behind(settings, tmp_path):
    said = []
    (result,) = finetune(settings(tmp_path, tasks=("docs_package",), subset=320), said.append)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["cells"][0]["best"] == result.best
    assert "docs_package" in said[-1]
    folder = Path(result.folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tuple(model.config.id2label.values()) == load_task("docs_package", TaskSource()).task.labels
    rows = load_task("docs_package", TaskSource()).splits["dev"][:20]
    predicted = [json.loads(line)["prediction"] for line in (folder / "predictions_dev.jsonl").read_text().splitlines()]
    inputs = tokenizer(
        [row.first for row in rows],
        truncation=True,
        max_length=32,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        stock = [model.config.id2label[int(n)] for n in model(**inputs).logits.argmax(1)]
    assert stock == predicted[:20]
    assert (folder / "predictions_test.jsonl").is_file()
    assert not (folder / "checkpoints").exists()


KILLED_AT_STEP_17 = """
import os, pickle, signal, sys
from mlpt.downstream.finetune import run_cell
from mlpt.training.loop import Loop
train_step = Loop.train_step
def until_killed(loop):
    if loop.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(loop)
Loop.train_step = until_killed
run_cell(pickle.load(sys.stdin.buffer))
"""


def test_a_killed_fine_tuning_ends_with_the_same_weights_bit_for_bit(settings, tmp_path):
    def config(out):
        return settings(tmp_path / out, max_steps=25, checkpoint_every=7, evaluate_every=5)

    (whole,) = (run_cell(cell, say=quiet) for cell in cells(config("whole")))
    (cell,) = cells(config("killed"))
    # As many threads on both sides: the order in which threads add up is no part of the promise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED_AT_STEP_17]
    killed = subprocess.run(command, input=pickle.dumps(cell), env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    said = []
    resumed = run_cell(cell, say=said.append)
    assert "going on from step" in said[0]
    assert (resumed.best, resumed.last, resumed.best_step) == (whole.best, whole.last, whole.best_step)
    first, second = weights_of(Path(whole.folder) / "model"), weights_of(Path(resumed.folder) / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)
    metrics = [(Path(result.folder) / "metrics.jsonl").read_text() for result in (whole, resumed)]
    assert metrics[0] == metrics[1]


def test_a_finished_cell_is_read_back_and_other_settings_are_refused(settings, tmp_path):
    (cell,) = cells(settings(tmp_path, max_steps=2))
    first = run_cell(cell, say=quiet)
    assert run_cell(cell, say=quiet) == first
    (other,) = cells(settings(tmp_path, max_steps=3))
    with pytest.raises(UserError, match="holds a fine-tuning with other settings"):
        run_cell(other, say=quiet)


def test_further_tasks_and_seeds_join_the_results_and_another_fine_tuning_is_refused(settings, tiny_model, tmp_path):
    few = {"max_steps": 1, "evaluate_every": 1}
    first = finetune(settings(tmp_path / "out", metric="macro_f1", **few), quiet)
    second = finetune(settings(tmp_path / "out", tasks=("docs_package",), seeds=(2,), **few), quiet)
    third = finetune(settings(tmp_path / "out", metric="macro_f1", seeds=(2,), **few), quiet)
    results = tmp_path / "out" / "results.json"
    found = json.loads(results.read_text())["cells"]
    assert [(one["task"], one["seed"]) for one in found] == [("docs_package", 2), ("mood", 1), ("mood", 2)]
    assert found == [one.to_json() for one in (*second, *first, *third)]
    before = results.read_bytes()
    shutil.copytree(tiny_model, tmp_path / "another")
    weights = {name: weight + 1 for name, weight in load_file(tiny_model / "model.safetensors").items()}
    save_file(weights, tmp_path / "another" / "model.safetensors", {"format": "pt"})
    for other, named in [({"model": str(tmp_path / "another")}, "model"), ({"batch_size": 8}, "batch_size")]:
        says = rf"holds a fine-tuning with other settings or data \({named}\); choose another out"
        with pytest.raises(UserError, match=says):
            finetune(settings(tmp_path / "out", tasks=("docs_summary",), **few, **other), quiet)
    assert results.read_bytes() == before
    assert not (tmp_path / "out" / "docs_summary").exists()


def test_a_cell_that_an_earlier_version_finished_is_read_back(settings, tmp_path):
    (cell,) = cells(settings(tmp_path, max_steps=2))
    first = run_cell(cell, say=quiet)
    written = json.loads((cell.folder / "cell.json").read_text())
    del written["micro_batch_size"]  # what its settings were called and had not yet
    written |= {"eval_steps": written.pop("evaluate_every"), "eval_epochs": written.pop("evaluate_epochs")}
    (cell.folder / "cell.json").write_text(json.dumps(written))
    assert run_cell(cell, say=quiet) == first


def test_a_model_named_by_another_path_is_the_same_cell(settings, tmp_path, tiny_model, monkeypatch):
    (cell,) = cells(settings(tmp_path, max_steps=2))
    first = run_cell(cell, say=quiet)
    monkeypatch.chdir(tiny_model.parent)
    (same,) = cells(settings(tmp_path, max_steps=2, model=tiny_model.name))
    assert run_cell(same, say=quiet) == first


def test_a_cell_and_what_it_shares_can_be_sent_to_another_process(settings, tmp_path):
    (cell,) = cells(settings(tmp_path / "a", max_steps=5))
    shared = pickle.loads(pickle.dumps(prepare(cell.config, cell.task)))
    with_shared = run_cell(pickle.loads(pickle.dumps(cell)), shared, quiet)
    (alone,) = (run_cell(cell, say=quiet) for cell in cells(settings(tmp_path / "b", max_steps=5)))
    assert with_shared.last == alone.last
    first, second = weights_of(Path(with_shared.folder) / "model"), weights_of(Path(alone.folder) / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_grid_runs_every_seed_and_rate_and_seeds_differ(settings, tmp_path):
    config = settings(tmp_path, seeds=(1, 2), learning_rates=(1e-3, 3e-3), max_steps=4, evaluate_every=4)
    results = finetune(config, quiet)
    assert [(r.learning_rate, r.seed) for r in results] == [(1e-3, 1), (1e-3, 2), (3e-3, 1), (3e-3, 2)]
    heads = [weights_of(Path(r.folder) / "model")["classifier.weight"] for r in results[:2]]
    assert not torch.equal(*heads)


def test_early_stopping_ends_a_run_that_gets_no_better(settings, tmp_path):
    # A rate this small changes no prediction, so the second evaluation is no better than the first.
    config = settings(tmp_path, learning_rates=(1e-12,), max_steps=100, evaluate_every=2, patience=3)
    (result,) = finetune(config, quiet)
    assert result.steps == 8
    assert result.best_step == 2
    assert "no better accuracy in 3 evaluations" in result.stopped


def test_best_and_last_checkpoints_are_both_reported_and_the_chosen_one_kept(settings, tmp_path):
    config = settings(tmp_path, max_steps=30, keep_model="last")
    (result,) = finetune(config, quiet)
    lines = [json.loads(line) for line in (Path(result.folder) / "metrics.jsonl").read_text().splitlines()]
    evaluations = [(line["step"], line["dev"]) for line in lines if "dev" in line]
    assert [step for step, _ in evaluations] == [10, 20, 30]
    best = max(scores["dev"]["accuracy"] for _, scores in evaluations)
    assert result.best["dev"]["accuracy"] == best
    assert result.best_step == next(step for step, scores in evaluations if scores["dev"]["accuracy"] == best)
    assert result.last == evaluations[-1][1]


def test_few_samples_are_drawn_by_the_seed(settings, tmp_path):
    config = settings(tmp_path, subset=40, max_steps=1, evaluate_every=1)
    shared = prepare(config, config.tasks[0])
    runs = [CellRun(FinetuneCell(config, config.tasks[0], 1e-3, seed), shared, Group(), quiet) for seed in (1, 2)]
    assert [len(run.rows) for run in runs] == [40, 40]
    assert runs[0].rows.tokens.tolist() != runs[1].rows.tokens.tolist()


def losses_of(run, steps):
    """The losses of so many steps from here on."""
    losses = []
    for _ in range(steps):
        run.loop.train_step()
        losses.append(float(run.last_loss))
    return losses


def test_a_token_budget_changes_the_passes_but_not_the_step(settings, tmp_path):
    def run(out, tokens):
        config = settings(tmp_path / out, tokens_per_batch=tokens)
        shared = prepare(config, config.tasks[0])
        for module in (shared.base.config,):
            module.hidden_dropout_prob = module.attention_probs_dropout_prob = 0.0
        made = CellRun(FinetuneCell(config, config.tasks[0], 1e-3, 1), shared, Group(), quiet)
        losses = losses_of(made, 2)
        return losses, [p.detach().double() for p in made.model.parameters()]

    (losses, whole), (split_losses, split) = run("a", 10**6), run("b", 30)
    assert losses == pytest.approx(split_losses, abs=1e-5)
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_a_diverged_run_says_so_and_keeps_its_best(settings, tmp_path):
    said = []
    config = settings(tmp_path, learning_rates=(1e30,), evaluate_every=1, clip=1e30, max_steps=30)
    (result,) = finetune(config, said.append)
    assert "was not finite" in result.stopped
    assert result.steps < 30
    assert any("lower the learning rate" in line for line in said)


def test_spans_are_trained_and_a_stock_question_answering_model_is_left(settings, tmp_path):
    config = settings(tmp_path, tasks=("docs_span",), max_length=96, max_steps=6, evaluate_every=6, subset=100)
    (result,) = finetune(config, quiet)
    assert set(result.best["dev"]) == {"f1", "exact_match"}
    AutoModelForQuestionAnswering.from_pretrained(Path(result.folder) / "model")
    line = json.loads((Path(result.folder) / "predictions_dev.jsonl").read_text().splitlines()[0])
    assert line["n_best"][0][0] == line["prediction"]


def test_a_head_is_kept_only_if_its_labels_are_the_tasks_in_the_same_order(settings, tmp_path):
    (result,) = finetune(settings(tmp_path, max_steps=2), quiet)
    task = prepare(settings(tmp_path), "mood").data.task
    model = AutoModelForSequenceClassification.from_pretrained(Path(result.folder) / "model")
    same = build_model(load_base(str(Path(result.folder) / "model"), task), task, 9)
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    model.config.id2label, model.config.label2id = {0: "yes", 1: "no"}, {"yes": 0, "no": 1}
    model.save_pretrained(tmp_path / "swapped")
    drawn = build_model(load_base(str(tmp_path / "swapped"), task), task, 9)
    assert not torch.equal(drawn.classifier.weight, model.classifier.weight)
    assert torch.equal(drawn.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


def test_a_runs_folder_stands_for_its_model(tiny_model, tmp_path):
    assert load_base(str(tiny_model.parent), TASKS["sst2"]).config.hidden_size == 32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "/nowhere/at/all"}, "cannot load a model from '/nowhere/at/all'"),
        ({"metric": "bleu"}, "task 'mood' has no metric 'bleu'; it has accuracy, macro_f1"),
        ({"tasks": ("docs_sumary",)}, "did you mean 'docs_summary'"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        finetune(settings(tmp_path, **changed), quiet)


def test_a_repeated_seed_is_refused(tiny_model):
    with pytest.raises(UserError, match="seeds names a value twice"):
        load_settings(FinetuneConfig, {"model": str(tiny_model), "tasks": ["sst2"], "seeds": [1, 1]})


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_pruned_weights_stay_zero_and_the_rest_is_trained(settings, tiny_model, tmp_path, kind):
    backbone = AutoModelForMaskedLM.from_pretrained(tiny_model)
    weights = {name: p for name, p in backbone.named_parameters() if ".encoder." in name and p.ndim == 2}
    masks = magnitude_masks(weights, 0.5)
    save_masks(MaskFile.of(masks, "magnitude", base_hash=base_hash(backbone, list(masks))), tmp_path / "m.safetensors")
    optimizer = OptimizerConfig(kind=kind, weight_decay=0.1)
    (result,) = finetune(settings(tmp_path / "out", masks=str(tmp_path / "m.safetensors"), optimizer=optimizer), quiet)
    tuned, start = weights_of(Path(result.folder) / "model"), backbone.state_dict()
    assert len(masks) == 2 * 6
    for name, mask in masks.items():
        assert not tuned[name][~mask].any(), name
        assert (tuned[name][mask] != start[name][mask]).float().mean() > 0.9


def test_a_fine_tuned_model_is_evaluated_again_without_training(settings, tmp_path, capsys):
    (result,) = finetune(settings(tmp_path), quiet)
    again = settings(tmp_path, model=str(Path(result.folder) / "model"))
    assert evaluate_saved(again, "mood") == result.best
    (own,) = again.source.own
    task = {name: getattr(own, name) for name in ("name", "train", "dev", "first")}
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(task))
    words = ["evaluate", again.model, "--task-file", str(tmp_path / "mood.yaml"), "--set", "max_length=32"]
    assert run([*words, "--json", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    assert all(f"{metric} {100 * value:.2f}" in said for metric, value in result.best["dev"].items())
    assert json.loads((tmp_path / "scores.json").read_text()) == {"tasks": {"mood": result.best}}
    with pytest.raises(UserError, match="has no head for task 'mood'"):
        evaluate_saved(settings(tmp_path), "mood")


def test_a_roberta_is_fine_tuned_within_its_positions_and_without_token_types(settings, tmp_path):
    texts = [row.first for row in load_task("docs_package", TaskSource()).splits["dev"]]
    tokenizer = train_tokenizer("bpe", lambda: iter(texts), 300)
    tokenizer.save_pretrained(tmp_path / "roberta")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=40, type_vocab_size=1, **shape)
    config.pad_token_id = tokenizer.pad_token_id
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    changed = {"tasks": ("docs_summary",), "subset": 32, "max_length": 64, "predict_test": False}
    made = settings(tmp_path / "out", model=str(tmp_path / "roberta"), max_steps=2, **changed)
    train = prepare(made, "docs_summary").features["train"]
    assert int(train.lengths.max()) == 40 - (tokenizer.pad_token_id + 1)
    assert train.types is None
    (result,) = finetune(made, quiet)
    assert result.steps == 2


def test_a_head_for_another_number_of_labels_is_drawn_anew(settings, tmp_path):
    (result,) = finetune(settings(tmp_path, max_steps=2), quiet)
    base = load_base(str(Path(result.folder) / "model"), TASKS["mnli"])
    assert base.config.num_labels == 3
    assert {"classifier.weight", "classifier.bias"}.isdisjoint(base.weights)
    assert "bert.pooler.dense.weight" in base.weights


def test_dev_rows_without_labels_are_refused(settings, tmp_path):
    for split, line in (("train", '{"idx": 0, "premise": "p", "hypothesis": "h", "label": "neutral"}'), ("val", "")):
        path = tmp_path / "CB" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(line or '{"idx": 0, "premise": "p", "hypothesis": "h"}')
    with pytest.raises(UserError, match="split 'dev' of task 'cb' has rows without a label"):
        finetune(settings(tmp_path / "out", tasks=("cb",), source=TaskSource(data_dir=str(tmp_path))), quiet)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst2", "cb"])
def test_a_tiny_model_beats_the_majority_on_real_tasks(tiny_model, tmp_path, shared_data, task):
    config = FinetuneConfig(
        model=str(tiny_model),
        tasks=(task,),
        source=TaskSource(data_dir=str(shared_data)),
        out=str(tmp_path),
        seeds=(1,),
        learning_rates=(2e-3,),
        max_steps=400,
        max_length=128,
        evaluate_every=100,
    )
    (result,) = finetune(config, quiet)
    assert result.best["dev"][result.metric] > result.majority["dev"][result.metric] + 0.05
