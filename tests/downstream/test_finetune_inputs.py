"""What a fine-tuning is told and given: changed rows and models, broken ones, masks beside the model, short windows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_bert import mask_groups
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from mlpt.downstream.finetune import finetune
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.run import run_multitask
from mlpt.errors import UserError
from mlpt.sparsity.artefacts import fit, load_masks, zero_pruned
from mlpt.sparsity.commands import export_files, prune
from mlpt.sparsity.structured import load_group_mask
from mlpt.tasks import OwnTask, TaskSource
from mlpt.tasks.features import SpanConfig


def quiet(_):
    pass


def weights_of(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def mood_files(folder: Path, rows: int = 64) -> TaskSource:
    """A task of its own for tests that change its files."""
    lines = [f"{'true' if n % 2 else 'false'} value {n},{'yes' if n % 2 else 'no'}\n" for n in range(rows)]
    folder.mkdir(exist_ok=True)
    for split in ("train", "dev"):
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(lines))
    files = {split: str(folder / f"{split}.csv") for split in ("train", "dev")}
    return TaskSource(own=(OwnTask(name="mood", first="text", **files),))


@pytest.mark.parametrize("split", ["train", "dev"])
def test_changed_rows_are_not_answered_with_the_scores_of_the_old_ones(settings, tmp_path, split):
    config = settings(tmp_path / "out", source=mood_files(tmp_path / "data"), max_steps=2)
    first = finetune(config, quiet)
    assert finetune(config, quiet) == first
    with open(tmp_path / "data" / f"{split}.csv", "a") as file:
        file.write("one more,yes\n")
    with pytest.raises(UserError, match=f"rows of {split}.*choose another out"):
        finetune(config, quiet)


def test_a_changed_model_is_not_answered_with_the_scores_of_the_old_one(settings, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = settings(tmp_path / "out", model=str(model), max_steps=2)
    finetune(config, quiet)
    weights = AutoModelForMaskedLM.from_pretrained(model)
    torch.nn.init.ones_(weights.bert.embeddings.LayerNorm.bias)
    weights.save_pretrained(model)
    with pytest.raises(UserError, match=r"\(model\)"):
        finetune(config, quiet)


def test_the_same_rows_and_model_at_another_place_are_the_same_cell(settings, tiny_model, tmp_path):
    first = finetune(settings(tmp_path / "out", source=mood_files(tmp_path / "here"), max_steps=2), quiet)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    moved = settings(tmp_path / "out", model=str(model), source=mood_files(tmp_path / "there"), max_steps=2)
    assert finetune(moved, quiet) == first
    named = json.loads((Path(first[0].folder) / "cell.json").read_text())["named"]
    assert (named["model"], named["source"]["own"][0]["train"]) == (str(tiny_model), str(tmp_path / "here/train.csv"))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("xxx", "unknown task 'xxx'"),
        ("sst2", "give --data-dir FOLDER"),
        ("lost", "cannot read"),
        ("graded", "asks for a metric 'bleu'; there are"),
    ],
)
def test_every_task_is_looked_at_before_the_first_is_trained(settings, tmp_path, second, says):
    source = mood_files(tmp_path / "data")
    (mood,) = source.own
    lost = mood.model_copy(update={"name": "lost", "dev": str(tmp_path / "none.csv")})
    graded = mood.model_copy(update={"name": "graded", "metrics": ("bleu",)})
    config = settings(tmp_path / "out", tasks=("mood", second), source=TaskSource(own=(mood, lost, graded)))
    with pytest.raises(UserError, match=says):
        finetune(config, quiet)
    assert not (tmp_path / "out").exists()


def test_progress_and_the_place_of_results_are_told(settings, tmp_path):
    said, shown = [], []
    config = settings(tmp_path, seeds=(1, 2), max_steps=4, evaluate_every=2)
    finetune(config, said.append, lambda *one: shown.append(one))
    assert f"results go to {tmp_path}" in said[0]
    assert f"results: {tmp_path / 'results.json'}" in said
    assert [(what, done, total) for what, done, total, _ in shown] == [
        (f"mood, lr 0.003, seed {seed} (cell {seed} of 2)", step, 4) for seed in (1, 2) for step in range(1, 5)
    ]
    assert shown[0][3] == ""
    assert shown[-1][3].startswith("best accuracy 0.")


def broken_model(tiny_model: Path, folder: Path, how: str) -> str:
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        torch.save(AutoModelForMaskedLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
        weights.unlink()
    return str(folder)


@pytest.mark.parametrize("how", ["truncated", "pickled"])
@pytest.mark.parametrize("joint", [False, True])
def test_a_damaged_or_pickled_model_is_one_line(settings, tiny_model, tmp_path, how, joint):
    model = broken_model(tiny_model, tmp_path / "model", how)
    source = mood_files(tmp_path / "data")
    one = settings(tmp_path / "out", model=model, source=source)
    many = MultitaskConfig(model=model, tasks=("mood",), source=source, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot load") as error:
        run_multitask(many, quiet) if joint else finetune(one, quiet)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("described", "says"), [(True, "under its masks"), (False, "do not fit its config.json")])
@pytest.mark.parametrize("joint", [False, True])
def test_layers_that_an_export_made_smaller_are_never_drawn_anew(
    settings, tiny_model, tmp_path, joint, described, says, capsys
):
    heads = prune(str(tiny_model), "random", 0.5, str(tmp_path / "heads.npy"), structured="heads")["file"]
    export_files(str(tiny_model), str(tmp_path / "smaller"), heads=heads)
    if not described:
        (tmp_path / "smaller" / "compact.json").unlink()
    source = mood_files(tmp_path / "data")
    one = settings(tmp_path / "out", model=str(tmp_path / "smaller"), source=source)
    many = MultitaskConfig(model=str(tmp_path / "smaller"), tasks=("mood",), source=source, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=says) as error:
        run_multitask(many, quiet) if joint else finetune(one, quiet)
    assert "\n" not in str(error.value)


def test_the_best_checkpoint_may_be_picked_on_the_second_dev_split(settings, tmp_path):
    (tmp_path / "MNLI").mkdir()
    header, labels = "index\tsentence1\tsentence2\tgold_label\n", ["contradiction", "entailment", "neutral"]
    for split, shift in (("train", 0), ("dev_matched", 1), ("dev_mismatched", 0)):
        lines = [f"{i}\tthe file {i}\tof {labels[i % 3]}\t{labels[(i + shift) % 3]}\n" for i in range(48)]
        (tmp_path / "MNLI" / f"{split}.tsv").write_text(header + "".join(lines))
    changed = {"tasks": ("mnli",), "source": TaskSource(data_dir=str(tmp_path)), "max_steps": 40, "evaluate_every": 5}
    (result,) = finetune(settings(tmp_path / "out", **changed, select_split="dev_mismatched"), quiet)
    lines = [json.loads(line) for line in (Path(result.folder) / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line["dev"]["dev_mismatched"]["accuracy"] for line in lines if "dev" in line}
    assert result.best["dev_mismatched"]["accuracy"] == max(seen.values())
    assert result.best_step == next(step for step, value in seen.items() if value == max(seen.values()))
    with pytest.raises(UserError, match="has no dev split 'dev'; it has dev_matched, dev_mismatched"):
        finetune(settings(tmp_path / "other", **changed, select_split="dev"), quiet)


def pruned_model(tiny_model: Path, folder: Path, structured: str | None) -> Path:
    """A model with masks beside its weights, as a masked run leaves it."""
    shutil.copytree(tiny_model, folder)
    prune(str(folder), "magnitude", 0.5, str(folder), structured=structured)
    return folder


@pytest.mark.parametrize("structured", [None, "heads", "neurons"])
def test_a_model_is_fine_tuned_under_the_masks_beside_it_unless_it_is_to_be_dense(
    settings, tiny_model, tmp_path, structured
):
    model = pruned_model(tiny_model, tmp_path / "model", structured)
    said = []
    (result,) = finetune(settings(tmp_path / "out", model=str(model), max_steps=4), said.append)
    assert any("under the masks beside the model" in line for line in said)
    backbone = AutoModelForMaskedLM.from_pretrained(model)
    masks = {name: m for name, m in fit(load_masks(model), backbone).items() if ".output.dense" in name}
    tuned = weights_of(Path(result.folder) / "model")
    assert not any(tuned[name][~mask].any() for name, mask in masks.items())
    assert any(tuned[name].any() for name in masks)
    # The fine-tuned folder keeps its masks, so that going on from it keeps the zeros too.
    again = AutoModelForSequenceClassification.from_pretrained(Path(result.folder) / "model")
    kept = fit(load_masks(Path(result.folder) / "model"), again)
    assert all(torch.equal(kept[name], mask) for name, mask in masks.items())
    (dense,) = finetune(settings(tmp_path / "dense", model=str(model), max_steps=4, dense=True), quiet)
    assert dense.masks is None
    assert all(weights_of(Path(dense.folder) / "model")[name].ne(0).all() for name in masks)


@pytest.mark.parametrize("structured", ["heads", "neurons"])
def test_pruned_columns_compute_what_a_structured_mask_computes(tiny_model, tmp_path, structured):
    model = pruned_model(tiny_model, tmp_path / "model", structured)
    columns, grouped = (AutoModelForMaskedLM.from_pretrained(model).eval() for _ in range(2))
    zero_pruned(columns, fit(load_masks(model), columns))
    published = {"heads": "head_mask.npy", "neurons": "ffn_mask.npy"}[structured]
    mask_groups(grouped, **{structured: load_group_mask(model / published)})
    tokens = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(columns(tokens).logits, grouped(tokens).logits)


def span_files(folder: Path) -> TaskSource:
    """40 questions whose answers lie anywhere in a text of some 400 tokens; the last one spans nearly all of it."""
    folder.mkdir()
    words = [f"the value {number} of" for number in range(80)]
    context = " ".join(words)
    answers = [" ".join(words[at : at + 2]) for at in range(0, 78, 2)] + [context[4:-4]]
    rows = [
        {"question": "which", "text": context, "answer": answer, "answer_start": context.index(answer)}
        for answer in answers
    ]
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev")}
    names = {"first": "question", "second": "text", "label": "answer"}
    return TaskSource(own=(OwnTask(name="where", kind="span", max_length=512, **names, **files),))


def test_what_ran_is_recorded_where_the_model_is_shorter_than_asked(settings, tmp_path):
    said = []
    changed = {"tasks": ("where",), "source": span_files(tmp_path / "data"), "max_steps": 2, "evaluate_every": 2}
    (result,) = finetune(settings(tmp_path / "out", **changed, max_length=512), said.append)
    assert "task 'where': max_length 512 lowered to 256, the model's positions" in said
    assert (result.max_length, result.doc_stride, result.rows) == (256, 128, 40)
    assert result.windows > 40
    assert json.loads((tmp_path / "out" / "results.json").read_text())["cells"][0]["max_length"] == 256


def test_windows_that_would_not_overlap_are_laid_closer_and_lost_answers_are_told(settings, tmp_path):
    said = []
    changed = {"tasks": ("where",), "source": span_files(tmp_path / "data"), "max_steps": 2, "evaluate_every": 2}
    (result,) = finetune(settings(tmp_path / "out", **changed, max_length=64), said.append)
    (closer,) = [line for line in said if "doc_stride" in line]
    assert f"doc_stride 128 lowered to {result.doc_stride}, so that windows of 64 tokens overlap" in closer
    lost = [line for line in said if "lie in no window" in line]
    expected = "task 'where': 1 of 40 answers of {} (2.5%) lie in no window of 64 tokens"
    assert lost == [expected.format(split) for split in ("train", "dev")]
    assert result.lost_answers == {"train": 1 / 40, "dev": 1 / 40}
    assert result.warnings == [closer, *lost]


@pytest.mark.parametrize("some_unanswerable", [True, False])
def test_whether_answers_may_be_empty_is_decided_by_the_training_rows(settings, tmp_path, some_unanswerable):
    source = span_files(tmp_path / "data")
    train = tmp_path / "data" / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps({**row, "answer": ""}) + "\n" for row in rows[:5]))
    if some_unanswerable:
        some = [{**row, "answer": row["answer"] * (at > 3)} for at, row in enumerate(rows)]
        train.write_text("".join(json.dumps(row) + "\n" for row in some))
    own = source.own[0].model_copy(update={"test": str(tmp_path / "data" / "test.jsonl")})
    changed = {"tasks": ("where",), "source": TaskSource(own=(own,)), "max_steps": 1, "evaluate_every": 1}
    sure = SpanConfig(null_threshold=-1e9)  # wherever no answer may be the answer, it is
    (result,) = finetune(settings(tmp_path / "out", **changed, span=sure), lambda text: None)
    for split in ("dev", "test"):
        lines = (Path(result.folder) / f"predictions_{split}.jsonl").read_text().splitlines()
        empty = {json.loads(line)["prediction"] == "" for line in lines}
        assert empty == {some_unanswerable}, split
