"""Bad input of runs with a teacher: one line each, before or at the first update, and warnings with their figures."""

import json

import pytest
import torch
from rich.console import Console
from running import run
from teacher_runs import RULE, config_with

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import take_snapshot
from mlpt.models import writers
from mlpt.objectives import OBJECTIVES, make_objectives
from mlpt.run.build import build_learner, build_model, open_sources
from mlpt.run.judged import check_judges
from mlpt.run.launch import pretrain
from mlpt.run.planning import plan
from mlpt.tasks import TASKS, Example, TaskData
from mlpt.training.tracker import read_metrics

REFUSED = {
    "no objective": ({"objectives": {"teacher_made": None, "counted_mlm": {}}}, "there are 0"),
    "nothing judges": ({"meta": {"rules": {"teacher": {"tasks": []}}}}, "nothing judges the teacher"),
    "judged by itself": (
        {"meta": {"target": "teacher_made", "rules": {"teacher": {"tasks": []}}}},
        "whose loss the teacher itself would make",
    ),
    "no labelled rows": ({"meta": {"rules": {"teacher": {"tasks": ["boolq"]}}}}, "needs labelled rows"),
    "no such task": ({"meta": {"rules": {"teacher": {"tasks": ["three_moons"]}}}}, "which is no task"),
    "no format": ({"meta": {"rules": {"teacher": {"tasks": ["sst2"]}}}}, "has no text-to-text format"),
    "judged by whole blocks": (
        {"model": {"attend_within": "document"}, "meta": {"rules": {"teacher": {"tasks": ["mlm"]}}}},
        "judges by whole blocks",
    ),
    "moments without end": (
        {"meta": {"rules": {"teacher": {"optimizer": {"betas": [0.9, 1.0]}}}}},
        r"teacher\.optimizer\.betas\.1.*less than 1",
    ),
    "soft masker": (
        {
            "objectives": {"teacher_made": {"teacher": "masker"}},
            "meta": {"rules": {"teacher": {"rule": "teacher_soft"}}},
        },
        "a masker makes no soft samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_when_it_is_read(name):
    changes, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as error:
        config_with(**changes)
    assert "\n" not in str(error.value)


def test_a_short_network_and_a_teacher_of_another_size_are_one_line(moons_blocks):
    short = config_with(objectives={"teacher_made": {"network": {"positions": 8}}})
    with pytest.raises(UserError, match=r"network\.positions=34"):
        build_model(short, open_sources(short, moons_blocks))
    made = build_model(config_with(), open_sources(config_with(), moons_blocks)).objectives["teacher_made"]
    with pytest.raises(UserError, match="another vocabulary"):
        made.obey(torch.zeros(3))


def test_a_collapsed_teacher_is_one_warning_with_its_figure_in_log_and_report(moons_blocks, tmp_path, monkeypatch):
    initialise = writers.build_teacher

    def always_masks(*arguments):
        teacher = initialise(*arguments)
        torch.nn.init.constant_(teacher.head_inputs.decoder.bias[1:2], 20.0)  # of the mask token
        return teacher

    monkeypatch.setattr(writers, "build_teacher", always_masks)
    changes = {"data": {"source": moons_blocks}, "run_dir": str(tmp_path / "run")}
    tiny = {"steps": 3, "checkpoint_every": 3}
    settings = config_with(train=tiny).model_dump(mode="json", exclude_unset=True) | changes
    run = pretrain({}, settings, console=Console(quiet=True))
    found = "the teacher writes the mask token at 100% of the positions; raise meta.rules.teacher.auxiliary or entropy"
    log = (run.folder / "logs" / "rank_0.log").read_text()
    assert sum(found in line and '"event": "warning"' in line for line in log.splitlines()) == 1
    assert found in (run.folder / "report.html").read_text()
    reports = [line["meta"]["teacher"] for line in read_metrics(run.folder) if "meta" in line]
    assert reports[0]["mask_share"] > 0.99


@pytest.mark.parametrize(
    ("teacher", "figures", "says"),
    [
        ("pairs", {"copied_inputs": 0.95, "copied_targets": 0.97}, "copies its text: 95% of the input tokens"),
        ("pairs", {"copied_inputs": 0.95, "copied_targets": 0.5}, None),
        ("inputs", {"copied_inputs": 0.95, "copied_targets": 0.5}, "copies its text: 95%"),
        ("pairs", {"one_token_targets": 0.92}, "writes one token at 92% of its targets"),
        ("inputs", {"one_token_targets": 0.92}, None),
        ("inputs", {"one_token_inputs": 0.92}, "writes one token at 92% of its inputs"),
        ("masker", {"entropy_positions": 0.05}, "always takes the same positions: entropy 0.050 nats"),
        ("masker", {"entropy_positions": 2.0}, None),
    ],
)
def test_each_kind_of_collapse_has_its_line(teacher, figures, says):
    network = {"hidden_size": 8, "heads": 2, "intermediate_size": 16, "layers": 1, "positions": 10}
    vocabulary = Vocabulary(size=40, pad=0, mask=1, sep=2, cls=3, unk=1)
    writer = make_objectives({"teacher_made": {"teacher": teacher, "network": network}}, vocabulary)[
        "teacher_made"
    ].writer
    kinds = ("mask_share", "copied_inputs", "copied_targets", "one_token_inputs", "one_token_targets")
    found = writer.collapsed(dict.fromkeys(kinds, 0.1) | figures)
    assert found is None if says is None else says in found


@pytest.mark.parametrize("made", [{"samples": "soft"}, {}])
def test_soft_samples_and_a_model_that_takes_no_embeddings_are_refused_before_training(moons_blocks, tmp_path, made):
    rule = {**RULE, "rule": "teacher_soft"}
    changes = {"model": {"architecture": "esm"}, "objectives": {"teacher_made": made}}
    config = config_with(**changes, meta={"rules": {"teacher": rule}})
    with pytest.raises(UserError, match="'esm' takes no soft inputs; choose bert"):
        run(config, moons_blocks, tmp_path)
    assert not list(read_metrics(tmp_path))


def test_a_task_without_labels_is_refused_before_anything_is_made(tmp_path):
    rows = [{"question": "who", "passage": "ada", "idx": number} for number in range(3)]
    (tmp_path / "BoolQ").mkdir()
    (tmp_path / "BoolQ" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rule = {"tasks": ["boolq"], "source": {"data_dir": str(tmp_path)}}
    config = config_with(meta={"rules": {"teacher": rule}})
    for ask in (check_judges, plan):
        with pytest.raises(UserError, match="boolq") as refusal:
            ask(config)
        assert "\n" not in str(refusal.value)


def test_labelled_tasks_need_task_tokens(small_blocks):
    config = config_with(objectives={"teacher_made": {"network": {"positions": 32}}})
    sources = open_sources(config, small_blocks)
    learner = build_learner(config, sources, torch.device("cpu"))
    snapshot = take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True)
    with pytest.raises(UserError, match=r"without task tokens.*data\.tokenizer=task_bpe"):
        learner.update(snapshot, Evidence())


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "has no labelled training rows"),
        ([Example(0, "who", "it was 12", label=1)], "no answer of task 'record_span' fits"),
    ],
)
def test_a_task_that_cannot_judge_is_one_line(moons_blocks, monkeypatch, examples, says):
    data = TaskData(TASKS["record_span"], {"train": examples})
    monkeypatch.setattr("mlpt.meta.judges.load_task", lambda *_: data)
    rule = {"tasks": ["record_span"], "source": {"data_dir": "superglue"}}
    config = config_with(meta={"rules": {"teacher": rule}})
    learner = build_learner(config, open_sources(config, moons_blocks), torch.device("cpu"))
    snapshot = take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True)
    with pytest.raises(UserError, match=says):
        learner.update(snapshot, Evidence())


def test_answers_that_are_in_no_window_are_a_warning(moons_blocks, monkeypatch):
    found = Example(1, "who", "it was 12", label=1, spans=((7, 9),))
    data = TaskData(TASKS["record_span"], {"train": [Example(0, "who", "it was 12", label=1), found, found]})
    monkeypatch.setattr("mlpt.meta.judges.load_task", lambda *_: data)
    config = config_with(meta={"rules": {"teacher": {"tasks": ["record_span"], "source": {"data_dir": "superglue"}}}})
    learner = build_learner(config, open_sources(config, moons_blocks), torch.device("cpu"))
    snapshot = take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True)
    first, second = (learner.update(snapshot, Evidence()).report for _ in range(2))
    assert "the answers of 1 of 3 rows" in first["warnings"][0]
    assert "warnings" not in second


def test_only_objectives_that_load_models_name_some():
    """A teacher of batches is made, not loaded: the check of tokenizers has nothing to look up for it."""
    settings = {"teacher": "FOLDER"}
    found = {name: OBJECTIVES[name].saved_models(settings) for name in ("distill", "teacher_made", "mlm")}
    assert found == {"distill": ["FOLDER"], "teacher_made": [], "mlm": []}
    assert OBJECTIVES["combined"].saved_models({"distill": settings}) == ["FOLDER"]
