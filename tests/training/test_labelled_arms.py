"""Labelled tasks as arms: their rows, heads and losses, targets, resuming, ranks, saved models, and what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import running
import torch
from killing import KilledError, killed_at
from ranks import run_ranks
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from transformers import AutoModel

from mlpt.config import RunConfig
from mlpt.data.prepare import DataConfig, prepare
from mlpt.errors import UserError
from mlpt.objectives.labelled import PENALTY
from mlpt.randomness import numpy_generator
from mlpt.run.build import build_model, open_sources, run_rank
from mlpt.run.saved import resolve_model
from mlpt.settings import load_settings, merge
from mlpt.tasks import load_task
from mlpt.training.tracker import read_metrics

WORDS = {
    "legal": ["court", "law", "judge", "appeal", "motion", "ruling", "statute", "counsel", "plaintiff", "brief"],
    "sea": ["wave", "salt", "ship", "gull", "harbour", "tide", "sail", "rope", "deck", "storm"],
}
BASE = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "objectives": ["mlm"],
    "meta": {
        "interval": 4,
        "lag": 2,
        "rules": {"mixture": {"rule": "hypergradient", "lr": 0.5, "smoothing": 0.0}},
        "lookahead": {"engine": "one_step", "start": 4},
    },
    "train": {"steps": 16, "batch_size": 8, "log_every": 1, "evaluate_batches": 2, "checkpoint_every": 4, "keep": 10},
    "report": {"tensorboard": False},
}
AVERAGED = {"engine": "alignment", "averaged_steps": 4}


def prose(domain, random, words=60):
    """Text whose next word follows from the one before, in the domain's own words."""
    place, text = int(random.integers(10)), []
    for _ in range(words):
        place = (place + int(random.integers(1, 3))) % 10
        text.append(WORDS[domain][place])
    return " ".join(text)


def write_table(path, columns, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Blocks of two domains, and tables of labelled rows: of a text, of a pair of texts, of a score."""
    folder, random = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    sources = {}
    for name in WORDS:
        lines = [json.dumps({"text": prose(name, random)}) + "\n" for _ in range(200)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        sources[name] = str(folder / f"{name}.jsonl")
    settings = {"sources": sources, "vocab_size": 120, "block_size": 24, "dev_share": 0.1, "test_share": 0.1}
    prepare(load_settings(DataConfig, {**settings, "workers": 1}), str(folder / "blocks"))
    names = ["legal", "sea"]
    drawn = [names[one] for one in random.integers(2, size=160)]
    single = [(prose(name, random, int(random.integers(4, 12))), name) for name in drawn]
    write_table(folder / "topic.csv", ["text", "label"], single)
    write_table(folder / "topic_dev.csv", ["text", "label"], single[:20])
    others = [names[one] for one in random.integers(2, size=160)]
    pairs = [(prose(a, random, 6), prose(b, random, 6), "same" if a == b else "other") for a, b in zip(drawn, others)]  # noqa: B905
    write_table(folder / "pairs.csv", ["one", "two", "label"], pairs)
    scored = []
    for share in random.random(160).round(2):
        mixed = [prose("sea" if random.random() < share else "legal", random, 1) for _ in range(10)]
        scored.append((" ".join(mixed), share))
    write_table(folder / "wet.csv", ["text", "score"], scored)
    (folder / "more.yaml").write_text(
        "- {name: pairs, train: pairs.csv, first: one, second: two}\n"
        "- {name: wet, train: wet.csv, first: text, label: score, kind: regression}\n"
        "- {name: topic_with_dev, train: topic.csv, dev: topic_dev.csv, first: text}\n"
    )
    return folder


def config_of(workspace, **changes) -> RunConfig:
    data = {"source": str(workspace / "blocks")}
    values = merge({**BASE, "data": data, "tasks": [str(workspace / "topic.csv")]}, changes)
    return load_settings(RunConfig, values)


def run(config, folder, **keywords):
    return running.run(config, config.data.source, folder, **keywords)


def lines_of(folder):
    return [{k: line[k] for k in ("step", "loss", "mixture") if k in line} for line in read_metrics(folder)]


def test_files_become_tasks_that_are_written_down(workspace):
    config = config_of(workspace, tasks=[str(workspace / "topic.csv"), str(workspace / "more.yaml")])
    assert config.tasks == ("topic", "pairs", "wet", "topic_with_dev")
    own = {one.name: one for one in config.labelled.own}
    assert own["topic"].labels == ("legal", "sea")
    again = load_settings(RunConfig, config.model_dump(mode="json"))
    assert again == config  # as a resumed run reads it


def test_rows_are_held_out_and_every_row_is_in_one_place(workspace):
    config = config_of(workspace, tasks=[str(workspace / "more.yaml")], labelled={"dev_rows": 10})
    sources = open_sources(config, config.data.source)
    tokenizer = sources.train.tokenizer()

    def texts(rows):
        batch = rows.batch(np.arange(len(rows)))
        return [tokenizer.decode(one, skip_special_tokens=True) for one in batch.tokens]

    with_dev, without = sources["topic_with_dev"], sources["pairs"]
    assert (len(with_dev.train), len(with_dev.dev), len(with_dev.test)) == (150, 10, 20)
    assert (len(without.train), len(without.dev), len(without.test)) == (140, 10, 10)
    with open(workspace / "pairs.csv") as file:
        written = sorted(f"{row['one']} {row['two']}" for row in csv.DictReader(file))
    assert sorted(text for rows in (without.train, without.dev, without.test) for text in texts(rows)) == written
    order = numpy_generator(0, "held-out rows of pairs").permutation(160)  # by which every version splits them
    with open(workspace / "pairs.csv") as file:
        rows = [f"{row['one']} {row['two']}" for row in csv.DictReader(file)]
    assert texts(without.dev) + texts(without.test) + texts(without.train) == [rows[number] for number in order]


def test_no_passage_has_rows_on_both_sides(workspace, tmp_path):
    random, lines = np.random.default_rng(1), []
    for number in range(40):
        answers = [{"idx": one, "text": prose("sea", random, 2), "label": one % 2} for one in range(3)]
        questions = [{"idx": one, "question": prose("legal", random, 3), "answers": answers} for one in range(2)]
        passage = {"text": prose("sea", random, 8), "questions": questions}
        lines.append(json.dumps({"idx": number, "passage": passage}) + "\n")
    (tmp_path / "MultiRC").mkdir()
    (tmp_path / "MultiRC" / "train.jsonl").write_text("".join(lines))
    config = config_of(workspace, tasks=["multirc"], labelled={"data_dir": str(tmp_path), "dev_rows": 40})
    source = open_sources(config, config.data.source)["multirc"]
    examples = load_task("multirc", config.labelled).splits["train"]
    of = {
        split: {examples[number].group[0] for number in rows._numbers}
        for split, rows in (("train", source.train), ("dev", source.dev), ("test", source.test))
    }
    assert [len(of[split]) for split in ("train", "dev", "test")] == [28, 6, 6]
    assert [len(one) for one in (source.train, source.dev, source.test)] == [168, 36, 36]
    assert len(set.union(*of.values())) == 40


def test_a_batch_has_its_rows_own_labels_and_types(workspace):
    config = config_of(workspace, tasks=[str(workspace / "more.yaml")])
    sources = open_sources(config, config.data.source)
    tokenizer = sources.train.tokenizer()
    pairs = sources["pairs"].train.batch(np.array([3, 0, 7]))
    with open(workspace / "pairs.csv") as file:
        label_of = {(row["one"], row["two"]): row["label"] for row in csv.DictReader(file)}
    for tokens, types, label in zip(pairs.tokens, pairs.types, pairs.labels, strict=True):
        sides = [tokenizer.decode(tokens[types == side], skip_special_tokens=True) for side in (0, 1)]
        assert label_of[tuple(sides)] == ["other", "same"][int(label)]
    wet = sources["wet"].train.batch(np.array([1]))
    assert wet.types is None
    assert wet.labels.dtype == torch.float32


def test_heads_are_as_wide_as_tasks_have_classes(workspace):
    names = ["docs_package", "docs_summary", "topic", "wet"]
    config = config_of(workspace, tasks=[*names[:2], str(workspace / "topic.csv"), str(workspace / "more.yaml")])
    model = build_model(config, open_sources(config_of(workspace), config.data.source))
    widths = [model.heads[name][-1].out_features for name in names]
    assert widths == [len(load_task("docs_package", config.labelled).task.labels), 2, 2, 1]


@pytest.mark.parametrize("step", [11])
def test_a_killed_run_with_tasks_goes_on_bit_for_bit(workspace, tmp_path, step):
    tasks = [str(workspace / "topic.csv"), str(workspace / "more.yaml")]
    meta = {"target": {"topic": 0.5, "mlm": 0.5}, "interval": 8, "lag": 4}
    config = config_of(workspace, tasks=tasks, meta=meta, train={"draw": "stratified", "micro_batch_size": 2})
    whole = run(config, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config, tmp_path / "killed", must_save=killed_at(step))
    resumed = run(config, tmp_path / "killed")
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    assert resumed["held_out"] == whole["held_out"]
    assert resumed["epochs"] == whole["epochs"]
    assert whole["held_out"].keys() == {"mlm", "topic", "pairs", "wet", "topic_with_dev"}
    saved = [load_file(tmp_path / name / "model" / "heads.safetensors") for name in ("whole", "killed")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[1][name], one) for name, one in saved[0].items())


def rank_main(group, values, blocks, folder):
    run_rank(RunConfig.model_validate(values), blocks, Path(folder), group)


@pytest.mark.slow  # processes of two ranks
def test_two_ranks_see_the_rows_of_one(workspace, tmp_path):
    config = config_of(
        workspace,
        meta={"target": {"tasks": [str(workspace / "topic.csv"), str(workspace / "more.yaml")]}},
        train={"draw": "stratified", "micro_batch_size": 2},
    )
    run(config, tmp_path / "one")
    (tmp_path / "two").mkdir()
    run_ranks(rank_main, config.model_dump(), config.data.source, str(tmp_path / "two"))
    for key in ("loss", "held_out_before", "held_out"):
        lines = [[line[key] for line in read_metrics(tmp_path / name) if key in line] for name in ("one", "two")]
        assert len(lines[0]) == len(lines[1]) > 0
        for ours, theirs in zip(*lines, strict=True):
            assert theirs == pytest.approx(ours, rel=1e-3)


def killed_rank_main(group, values, blocks, folder, step):
    with pytest.raises(KilledError):
        run_rank(RunConfig.model_validate(values), blocks, Path(folder), group, must_save=killed_at(step))


@pytest.mark.slow  # processes of two ranks
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"train": {"sampling": {"mlm": 2, "topic": 1}}},
        {
            "meta": {"interval": 4, "lag": 2, "rules": {"mixture": {"rule": "dga"}}, "lookahead": AVERAGED},
            "train": {"checkpoint_every": 3},
        },
    ],
    ids=["drawn as weighed", "drawn apart", "among the steps that a look-ahead averages"],
)
def test_a_killed_run_of_two_ranks_with_domains_tasks_and_a_target_goes_on_bit_for_bit(workspace, tmp_path, more):
    changes = {
        "data": {"mix": "learned"},
        "meta": {"target": {"topic": 0.5, "mlm@legal": 0.5}, "interval": 8, "lag": 4},
        "train": {"draw": "stratified", "micro_batch_size": 2},
    }
    config = config_of(workspace, **merge(changes, more))
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    for folder in (whole, killed):
        Path(folder).mkdir()
    run_ranks(rank_main, config.model_dump(), config.data.source, whole)
    run_ranks(killed_rank_main, config.model_dump(), config.data.source, killed, 11)
    assert not (tmp_path / "killed" / "model").exists()
    run_ranks(rank_main, config.model_dump(), config.data.source, killed)
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    held_out = [
        [line["held_out"] for line in read_metrics(tmp_path / name) if "held_out" in line]
        for name in ("whole", "killed")
    ]
    assert held_out[0] == held_out[1]
    assert held_out[0][-1].keys() == {"mlm@legal", "mlm@sea", "topic"}
    for file in ("model.safetensors", "heads.safetensors"):
        saved = [load_file(tmp_path / name / "model" / file) for name in ("whole", "killed")]
        assert saved[0].keys() == saved[1].keys()
        assert all(torch.equal(saved[1][name], one) for name, one in saved[0].items())


def test_a_task_is_learned_beside_the_text_and_the_model_loads_without_it(workspace, tmp_path):
    values = {**BASE, "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"topic": 3, "mlm": 1}}}}}
    changes = {
        "data": {"source": str(workspace / "blocks"), "mix": "proportional"},
        "tasks": [shutil.copy(workspace / "topic.csv", tmp_path)],
        "model": {"dropout": 0.0},
        "train": {"steps": 60, "optimizer": {"lr": 1e-2}, "draw": "stratified", "micro_batch_size": 2},
    }
    config = load_settings(RunConfig, merge(values, changes))
    summary = run(config, tmp_path)
    assert summary["held_out"].keys() == {"mlm", "mlm@legal", "mlm@sea", "topic"}
    assert summary["held_out_before"]["topic"] == pytest.approx(np.log(2), abs=0.1)
    assert summary["held_out"]["topic"] < 0.1
    assert summary["epochs"]["topic"] == pytest.approx(60 * 8 * 3 / 4 / 96, rel=0.01)
    model, report = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert all(name.startswith("cls.") for name in report["unexpected_keys"])  # nothing of the task is among them
    assert model.config.model_type == "bert"
    (tmp_path / "topic.csv").unlink()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "blocks.json").write_text(json.dumps({"blocks": config.data.source, "digest": ""}))
    made = resolve_model(f"{tmp_path}@step=56")  # a checkpoint becomes a model without the task's rows
    names = {f"topic.{layer}.{weight}" for layer in (0, 3) for weight in ("weight", "bias")}
    assert load_file(Path(made) / "heads.safetensors").keys() == names


def test_a_domain_of_a_fixed_mix_beside_a_task_is_gone_through_as_often_as_it_may_be(workspace, tmp_path):
    values = {**BASE, "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"topic": 1, "mlm": 99}}}}}
    changes = {
        "data": {"source": str(workspace / "blocks"), "mix": {"legal": 0.1, "sea": 0.9}, "max_repeats": 1},
        "tasks": [str(workspace / "topic.csv")],
    }
    config = load_settings(RunConfig, merge(values, changes))
    sources = open_sources(config, config.data.source)
    text, task = len(sources["sea"].train) / 0.9, len(sources["topic"].train)
    config = load_settings(RunConfig, merge(config.model_dump(), {"train": {"steps": int(text + task / 2) // 8}}))
    epochs = run(config, tmp_path)["epochs"]
    assert epochs.keys() == {"legal", "sea", "topic"}
    assert 0.95 < epochs["sea"] <= 1
    assert epochs["legal"] == pytest.approx(epochs["sea"] / 9 * len(sources["sea"].train) / len(sources["legal"].train))
    assert 0.3 < epochs["topic"] <= 1
    more = load_settings(RunConfig, merge(config.model_dump(), {"train": {"steps": int(text + task) // 8 + 1}}))
    with pytest.raises(UserError, match=r"data.max_repeats=1 leaves"):
        run(more, tmp_path / "more")


@pytest.mark.parametrize("rule", ["hypergradient", "mometas"])
def test_every_rule_goes_through_with_a_target_of_tasks_that_train_or_do_not(workspace, tmp_path, rule):
    target = {"topic": 0.5, "mlm": 0.25, "tasks": [str(workspace / "more.yaml")]}
    rules = {"hypergradient": BASE["meta"]["rules"]["mixture"], "mometas": {"rule": "mometas"}}
    values = {**BASE, "meta": {**BASE["meta"], "rules": {"mixture": rules[rule]}, "target": target}}
    data = {"source": str(workspace / "blocks")}
    config = load_settings(RunConfig, {**values, "data": data, "tasks": [str(workspace / "topic.csv")]})
    summary = run(config, tmp_path)
    assert summary["mixture"].keys() == {"mlm", "topic"}
    assert summary["held_out"].keys() == {"mlm", "topic", "pairs", "wet", "topic_with_dev"}
    assert summary["target"]["weights"]["wet"] == pytest.approx(1 / 3.75)
    assert summary["policy_version"] >= 4


def test_masked_and_causal_batches_train_the_same_weights(workspace, tmp_path):
    rules = {"mixture": BASE["meta"]["rules"]["mixture"]}
    meta = {**BASE["meta"], "rules": rules, "target": {"clm": 1}, "lookahead": {"engine": "higher", "start": 4}}
    changes = {"objectives": ["mlm", "clm"], "train": {"steps": 24, "optimizer": {"lr": 1e-2}}, "meta": meta}
    summary = run(config_of(workspace, tasks=[], **changes), tmp_path)
    before, after = summary["held_out_before"], summary["held_out"]
    assert after["clm"] < before["clm"] - 0.5
    assert after["mlm"] < before["mlm"] - 0.5
    assert summary["mixture"]["clm"] != pytest.approx(0.5, abs=1e-3)


def test_the_layer_of_a_task_that_does_not_train_is_the_best_one_for_the_encoder(workspace):
    """Against scikit-learn's logistic and ridge regression on the same states."""
    config = config_of(workspace, tasks=[], meta={"target": {"tasks": [str(workspace / "more.yaml")]}})
    sources = open_sources(config, config.data.source)
    model = build_model(config, sources).eval()
    for name in ("pairs", "wet"):
        objective = model.objectives[name]
        objective.refresh(model)
        rows = sources[name].train
        assert len(objective.support) == len(rows) <= config.labelled.fit_rows
        inputs = objective.corrupt(objective.support, torch.Generator())
        with torch.no_grad():
            hidden, real = model.hidden(inputs), inputs.attention_mask.unsqueeze(-1)
            states = ((hidden * real).sum(1) / real.sum(1)).double().numpy()
            ours = objective.loss(model, inputs)
        states = (states - states.mean(0)) / states.std(0, ddof=1)
        labels = inputs.targets.numpy()
        if name == "pairs":
            # scikit-learn writes two classes as one difference of weights, of which each class has half.
            fitted = LogisticRegression(C=2 / (len(labels) * PENALTY), tol=1e-8, max_iter=5000).fit(states, labels)
            expected = log_loss(labels, fitted.predict_proba(states))
        else:
            fitted = Ridge(alpha=len(labels) * PENALTY / 2, tol=1e-8).fit(states, labels)
            expected = float(np.mean((fitted.predict(states) - labels) ** 2))
        assert float(ours) == pytest.approx(expected, rel=1e-3)


def test_rows_of_a_target_move_the_mixture_towards_the_arm_that_helps_them(workspace, tmp_path):
    """A task that trains is the best way to its own loss."""
    config = config_of(
        workspace,
        model={"dropout": 0.0},
        meta={"target": {"topic": 1}, "lookahead": {"start": 8}},
        train={"steps": 60, "optimizer": {"lr": 1e-2}, "draw": "stratified", "micro_batch_size": 2, "log_every": 20},
    )
    summary = run(config, tmp_path)
    assert summary["mixture"]["topic"] > 0.6
    assert summary["target"]["after"] < summary["target"]["before"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["sst"]}, "unknown task 'sst'; did you mean 'sst2'?"),
        ({"tasks": ["sst2"]}, "task 'sst2' needs its rows: set labelled.data_dir"),
        ({"tasks": ["squad"]}, "task 'squad' labels spans of texts"),
        ({"tasks": ["docs_package", "docs_package"]}, "names a task twice"),
        ({"tasks": ["NOFILE.csv"]}, "the task of NOFILE.csv would be named 'NOFILE'"),
        ({"tasks": ["nofile.csv"]}, "nofile.csv"),
        ({"tasks": ["nofile.yaml"]}, "cannot read the task file nofile.yaml"),
        ({"tasks": ["docs_package"], "objectives": {"docs_package": {"type": "mlm"}}}, "the name of an objective"),
        ({"meta": {"target": {"tasks": []}}}, "names of labelled tasks"),
        ({"meta": {"target": {"rte": 1}}}, "task 'rte' needs its rows: set labelled.data_dir"),
        ({"labelled": {"dev_rows": 2}}, "labelled.dev_rows"),
    ],
)
def test_tasks_that_make_no_sense_are_one_line(workspace, changes, message):
    values = {"data": {"source": str(workspace / "blocks")}, **changes}
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_settings(RunConfig, values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (30, {}, "task 'few' has 30 training and 0 dev rows with labels, too few to hold 8 out of each"),
        (60, {"train": {"batch_size": 64}}, "task 'few' has 36 rows to train on, fewer than one batch of 64"),
        (60, {"meta": {"target": {"fewer": 1}}}, "meta.target names 'fewer', which this run neither trains nor"),
    ],
)
def test_too_few_rows_are_one_line(workspace, tmp_path, rows, changes, message):
    lines = [("wave salt", "wet") if one % 2 else ("law court", "dry") for one in range(rows)]
    file = write_table(tmp_path / "few.csv", ["text", "label"], lines)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        run(config_of(workspace, tasks=[file], **changes), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_task_without_labels_and_one_named_like_a_domain_are_one_line(workspace, tmp_path):
    file = write_table(tmp_path / "legal.csv", ["text", "label"], [("law court", "dry"), ("wave salt", "wet")] * 40)
    with pytest.raises(UserError, match="'legal' names a domain of the text and a task"):
        run(config_of(workspace, tasks=[file]), tmp_path / "run")
    unlabelled = write_table(tmp_path / "bare.csv", ["text"], [("law court",)] * 60)
    with pytest.raises(UserError, match=r"bare\.csv"):
        config_of(workspace, tasks=[unlabelled])
    described = {"name": "bare", "dev": file, "first": "text", "labels": ["dry", "wet"]}
    with pytest.raises(UserError, match="task 'bare' has no labelled training rows"):
        run(config_of(workspace, tasks=["bare"], labelled={"own": [described]}), tmp_path / "run")
