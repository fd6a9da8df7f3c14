"""Text domains as arms: fixed and learned mixes, targets, caps on repeats, resuming, and what is refused."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import running
from killing import KilledError, killed_at
from ranks import run_ranks
from rich.console import Console

from mlpt.arms import arms_of
from mlpt.config import RunConfig
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.sources import PERIOD, MixedWalk, Sources
from mlpt.errors import UserError
from mlpt.meta.learner import MetaLearner
from mlpt.reporting.display import Display
from mlpt.run.blocks import with_target_texts
from mlpt.run.build import arms_in, open_sources, run_rank
from mlpt.run.launch import pretrain
from mlpt.run.saved import resolve_model
from mlpt.settings import load_settings, merge
from mlpt.training.arm_rows import ArmRows
from mlpt.training.group import Group
from mlpt.training.tracker import read_metrics

WORDS = {
    "legal": ["court", "law", "judge", "appeal", "motion", "ruling", "statute", "counsel", "plaintiff", "brief"],
    "sea": ["wave", "salt", "ship", "gull", "harbour", "tide", "sail", "rope", "deck", "storm"],
    "code": ["loop", "string", "class", "import", "yield", "lambda", "tuple", "slice", "buffer", "thread"],
}
LEARNED = {"rules": {"mixture": {"rule": "hypergradient", "lr": 0.5, "smoothing": 0.0}}}
BASE = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "objectives": ["mlm"],
    "meta": {"interval": 4, "lag": 2, "lookahead": {"engine": "one_step", "start": 4}},
    "train": {"steps": 16, "batch_size": 8, "log_every": 1, "evaluate_batches": 2, "checkpoint_every": 4, "keep": 10},
    "report": {"tensorboard": False},
}


def prose(domain, documents, seed):
    """Documents whose next word follows from the one before, in the domain's own words."""
    random, words = np.random.default_rng(seed), WORDS[domain]
    for _ in range(documents):
        place, text = int(random.integers(10)), []
        for _ in range(60):
            place = (place + int(random.integers(1, 3))) % 10
            text.append(words[place])
        yield " ".join(text)


def write(path, words, documents, seed, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in prose(words, documents, seed)))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    sizes = {"legal": 400, "sea": 100, "code": 200}
    made = {name: write(folder / f"{name}.jsonl", name, size, 0, domain="said") for name, size in sizes.items()}
    return {**made, "target": write(folder / "target.jsonl", "sea", 80, 9)}


@pytest.fixture(scope="module")
def blocks(texts, tmp_path_factory):
    """Three domains by name, and the target's text with their tokenizer."""
    folder = tmp_path_factory.mktemp("blocks")
    sources = {name: texts[name] for name in WORDS}
    settings = {
        "sources": sources,
        "vocab_size": 120,
        "block_size": 16,
        "dev_share": 0.1,
        "test_share": 0.1,
        "workers": 1,
    }
    prepare(load_settings(DataConfig, settings), str(folder / "domains"))
    tokenizer = f"{folder}/domains/tokenizer"
    target = {"source": texts["target"], "tokenizer": tokenizer, "block_size": 16, "dev_share": 0, "test_share": 0.3}
    prepare(load_settings(DataConfig, {**target, "workers": 1}), str(folder / "target"))
    return {"domains": str(folder / "domains"), "target": str(folder / "target")}


def config_of(blocks, **changes) -> RunConfig:
    values = merge({**BASE, "data": {"source": blocks["domains"], "mix": "learned"}}, changes)
    return load_settings(RunConfig, values)


def run(config, blocks, folder, **keywords):
    return running.run(config, blocks["domains"], folder, **keywords)


def lines_of(folder):
    return [{k: line[k] for k in ("step", "loss", "mixture") if k in line} for line in read_metrics(folder)]


def test_names_given_to_sources_are_the_domains_whatever_the_rows_say(blocks):
    sources = Sources.open(blocks["domains"])
    assert sources.domains == ["code", "legal", "sea"]
    assert list(sources) == ["all", "code", "legal", "sea"]
    tokenizer = sources.train.tokenizer()
    for name in WORDS:
        rows = sources[name].train
        text = tokenizer.decode(rows.batch(np.arange(20)).tokens.reshape(-1), skip_special_tokens=True)
        assert set(text.split()) & set(WORDS[name])
        others = {word for other, words in WORDS.items() if other != name for word in words}
        assert len([word for word in text.split() if word in others]) <= 16  # the last block of a piece may mix


def test_a_fixed_mix_has_its_shares_and_each_domain_its_own_epochs(blocks):
    sources = Sources.open(blocks["domains"], {"legal": 0.2, "sea": 0.5, "code": 0.3})
    walk = sources.walk("all", 8, seed=1)
    assert isinstance(walk, MixedWalk)
    rows = walk.take(0, PERIOD + 100)
    assert np.array_equal(
        rows, np.concatenate([walk.take(start, 52) for start in range(0, PERIOD + 100, 52)])[: len(rows)]
    )
    for name, share in {"legal": 0.2, "sea": 0.5, "code": 0.3}.items():
        own = sources[name].train.numbers
        drawn = rows[:PERIOD][np.isin(rows[:PERIOD], own)]
        assert len(drawn) / PERIOD == pytest.approx(share, abs=1e-4)
        first_epoch = drawn[: len(own)]
        assert len(set(first_epoch.tolist())) == min(len(own), len(drawn))  # each row once before any is given again


@pytest.mark.parametrize("target", [None, "target"], ids=["all domains", "texts"])
@pytest.mark.parametrize("step", [11])
def test_a_killed_run_with_domains_goes_on_bit_for_bit(blocks, tmp_path, step, target):
    meta = {**LEARNED, "target": {"texts": blocks["target"]}} if target else LEARNED
    config = config_of(blocks, meta=meta)
    whole = run(config, blocks, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config, blocks, tmp_path / "killed", must_save=killed_at(step))
    resumed = run(config, blocks, tmp_path / "killed")
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    assert resumed["held_out"] == whole["held_out"]
    assert resumed["epochs"] == whole["epochs"]


def rank_main(group, values, blocks, folder):
    run_rank(RunConfig.model_validate(values), blocks, Path(folder), group)


@pytest.mark.parametrize("draw", ["step", "stratified"])
def test_two_ranks_see_the_rows_of_one(blocks, tmp_path, draw):
    config = config_of(blocks, meta={**LEARNED, "target": {"texts": blocks["target"]}}, train={"draw": draw})
    one = run(config, blocks, tmp_path / "one")
    (tmp_path / "two").mkdir()
    run_ranks(rank_main, config.model_dump(), blocks["domains"], str(tmp_path / "two"))
    losses = [[line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    for ours, theirs in zip(*losses, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)
    assert sum(one["epochs"].values()) > 0


def test_a_learned_mix_goes_to_the_domain_of_the_target(blocks, tmp_path):
    config = config_of(
        blocks,
        meta={**LEARNED, "target": {"texts": blocks["target"]}},
        train={"steps": 60, "optimizer": {"lr": 5e-3}, "log_every": 20, "draw": "stratified", "micro_batch_size": 2},
    )
    summary = run(config, blocks, tmp_path)
    assert summary["mixture"]["mlm@sea"] == max(summary["mixture"].values()) > 0.5
    assert summary["target"]["after"] < summary["target"]["before"]
    assert summary["target"]["weights"] == {"mlm@texts": 1.0}
    assert summary["held_out"].keys() == {"mlm@code", "mlm@legal", "mlm@sea", "mlm@texts"}


@pytest.mark.parametrize("rule", ["dga", "hypergradient"])
def test_objectives_and_domains_are_learned_as_a_product(blocks, tmp_path, rule):
    settings = {"rule": rule, "floor": 0, "smoothing": 0, "factor": ["objective", "domain"]}
    config = config_of(
        blocks,
        objectives={"mlm": {}, "clm": {}},
        meta={"rules": {"mixture": settings}, "target": {"texts": blocks["target"]}},
        train={"draw": "stratified", "micro_batch_size": 1},
    )
    mixture = run(config, blocks, tmp_path)["mixture"]
    table = np.array([[mixture[f"{objective}@{domain}"] for domain in WORDS] for objective in ("mlm", "clm")])
    assert table == pytest.approx(np.outer(table.sum(1), table.sum(0)), abs=1e-6)
    assert table.std() > 1e-3


def test_a_mix_that_is_given_leaves_the_objectives_to_their_rule(blocks, tmp_path):
    config = config_of(
        blocks, data={"mix": "uniform"}, objectives={"mlm": {}, "atd": {}}, meta={"rules": {"mixture": "exp3"}}
    )
    summary = run(config, blocks, tmp_path)
    assert summary["mixture"].keys() == {"mlm", "atd"}
    domains = {f"{objective}@{domain}" for objective in ("mlm", "atd") for domain in WORDS}
    assert summary["held_out"].keys() == {"mlm", "atd"} | domains
    rows = {name: len(source.train) for name, source in Sources.open(blocks["domains"]).items() if name != "all"}
    assert summary["epochs"] == pytest.approx({name: 16 * 8 / 3 / count for name, count in rows.items()})


def test_a_text_that_is_used_up_is_drawn_no_more(blocks, tmp_path):
    config = config_of(
        blocks,
        data={"max_repeats": 0.2},
        meta={"rules": {"mixture": {"rule": "fixed", "weights": {"mlm@sea": 8, "mlm@legal": 1, "mlm@code": 1}}}},
        train={"steps": 100, "log_every": 1},
    )
    summary = run(config, blocks, tmp_path)
    assert 0.1 < summary["epochs"]["sea"] <= 0.2
    last = [set(line["loss"]) for line in read_metrics(tmp_path) if "loss" in line][-20:]
    assert not any("mlm@sea" in drawn for drawn in last)


@pytest.mark.parametrize("draw", ["step", "stratified"])
def test_arms_that_are_drawn_by_other_probabilities_weigh_what_the_mixture_says(blocks, draw):
    """Over many steps the mean weight of an arm's loss is its share p of the mixture, though it comes by q."""
    sampling = {"legal": 2, "sea": 1, "code": 1}
    config = config_of(blocks, meta=LEARNED, train={"draw": draw, "micro_batch_size": 2, "sampling": sampling})
    sources = open_sources(config, blocks["domains"])
    arms = arms_in(config, sources)
    sampling = arms.sampling(config.train.sampling)
    target = arms.selecting()
    work = ArmRows(config.train, None, sources, arms.every, arms.trained, target, Group(), seed=3, sampling=sampling)
    mixture = {"mlm@code": 0.1, "mlm@legal": 0.2, "mlm@sea": 0.7}
    weights, draws = dict.fromkeys(mixture, 0.0), dict.fromkeys(mixture, 0.0)
    steps = 4000
    for step in range(steps):
        for one in work.plan(step, mixture):
            weights[one.arm.name] += one.weight * len(one.rows) / config.train.batch_size / steps
            draws[one.arm.name] += one.share / steps
    # four standard errors of a share drawn once a step; of p / q times that
    error = 4 * 0.5 / np.sqrt(steps)
    assert draws == pytest.approx({"mlm@code": 0.25, "mlm@legal": 0.5, "mlm@sea": 0.25}, abs=error)
    assert weights == pytest.approx(mixture, abs=error * 0.7 / 0.25)
    assert sum(draws.values()) == pytest.approx(1)


def test_the_learner_hears_by_what_arms_were_drawn(blocks, tmp_path, monkeypatch):
    seen = []
    update = MetaLearner.update

    def watched(self, snapshot, evidence):
        seen.append(evidence)
        return update(self, snapshot, evidence)

    monkeypatch.setattr(MetaLearner, "update", watched)
    sampling = {"legal": 2, "sea": 1, "code": 1}
    run(config_of(blocks, meta=LEARNED, train={"sampling": sampling, "draw": "stratified"}), blocks, tmp_path)
    expected = {"mlm@code": 1.0, "mlm@legal": 2.0, "mlm@sea": 1.0}  # of the interval's four steps
    assert [one.expected for one in seen[1:]] == [pytest.approx(expected)] * 3
    assert [sum(one.draws.values()) for one in seen[1:]] == pytest.approx([4.0] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"sampling": {"legal": 1, "sea": 1}}, "meta": LEARNED}, "train.sampling leaves out mlm@code"),
        ({"train": {"sampling": {"law": 1}}, "meta": LEARNED}, "train.sampling names 'law'"),
        ({"train": {"sampling": {"mlm": 0}}}, "sampling takes numbers above 0"),
        ({"train": {"sampling": "uniform", "draw": "weighted"}}, "train.draw=weighted trains every arm"),
        (
            {"train": {"sampling": "uniform"}, "meta": {"rules": {"mixture": "mometas"}}},
            "'mometas' learns from how often its mixture draws arms",
        ),
        (
            {
                "train": {"sampling": {"mlm": 1, "sea": 1}},
                "data": {"mix": "uniform"},
                "meta": {"rules": {"mixture": "uniform"}},
            },
            "train.sampling names 'mlm@sea', which is only measured",
        ),
        ({"data": {"mix": {"legal": 0.5, "see": 0.5}}}, "data.mix names the domain 'see'.*code, legal, sea"),
        ({"data": {"mix": {"legal": 0.5, "sea": 0.6}}}, "the shares sum to 1.1"),
        ({"meta": {"target": "law"}}, "meta.target names 'law', which this run neither trains nor measures"),
        ({"meta": {"target": {"texts": 1}}}, "texts"),
        ({"meta": {"target": {"sea": 0}}}, "numbers above 0"),
        ({"data": {"max_repeats": 0.01}}, "data.max_repeats=0.01 leaves"),
        ({"data": {"mix": {"sea": 1.0}, "max_repeats": 0.1}, "train": {"steps": 200}}, "would go through 'sea'"),
        ({"train": {"batch_size": 4096, "micro_batch_size": 64}}, "fewer than one batch of 4096"),
        (
            {"meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}}}},
            "'mlm', which this run does not train",
        ),
    ],
)
def test_what_cannot_be_mixed_is_one_line(blocks, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run(config_of(blocks, **changes), blocks, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "docs", "sources": {"a": "docs"}}, "give one of them"),
        ({"sources": {}}, "name at least one domain"),
        ({"sources": {"all": "docs"}}, "can't name a domain"),
        ({"sources": {"a b": "docs"}}, "can't name a domain"),
        ({"sources": {"a": "docs"}, "mix": {"b": 1}}, "mix names 'b'"),
        ({"source": "docs", "max_repeats": 2}, "set mix too"),
    ],
)
def test_sources_that_make_no_sense_are_one_line(data, message):
    with pytest.raises(UserError, match=message) as error:
        load_settings(DataConfig, data, "data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["all", "texts", "a b", "mlm@sea"])
@pytest.mark.parametrize("by_rows", [True, False])
def test_a_domain_that_text_names_as_no_domain_may_be_named_is_one_line(texts, tmp_path, name, by_rows):
    folder, out = tmp_path / "folder", str(tmp_path / "blocks")
    folder.mkdir()
    for domain, words in (("legal", "legal"), (name, "sea")):
        file = folder / ("both.jsonl" if by_rows else f"{domain}.txt")
        rows = [json.loads(line)["text"] for line in Path(texts[words]).read_text().splitlines()]
        lines = [json.dumps({"text": row, "domain": domain}) if by_rows else row + "\n" for row in rows]
        with file.open("a") as opened:
            opened.write("\n".join(lines) + "\n")
    settings = {"source": str(folder), "documents": "blank", "vocab_size": 120, "block_size": 16, "workers": 1}
    assert prepare(load_settings(DataConfig, settings), out).splits["train"].domains == sorted(["legal", name])
    Sources.open(out)  # a run that mixes nothing does not tell them apart
    for mix in ("uniform", "learned", {name: 1.0}):
        with pytest.raises(UserError, match="can't name a domain") as error:
            Sources.open(out, mix)
        assert "\n" not in str(error.value)
        assert name in str(error.value)


def test_a_domain_without_enough_text_is_named(texts, tmp_path):
    blocks = str(tmp_path / "blocks")
    (tmp_path / "small.jsonl").write_text(json.dumps({"text": "one two three four"}) + "\n")
    settings = {"sources": {"legal": texts["legal"], "sea": texts["sea"], "small": str(tmp_path / "small.jsonl")}}
    prepare(load_settings(DataConfig, {**settings, "vocab_size": 120, "block_size": 16, "workers": 1}), blocks)
    for sources in (settings["sources"], None):  # as they were named, or as the prepared folder has them
        config = load_settings(
            RunConfig,
            {
                **BASE,
                "data": {"sources": sources, "mix": "learned"}
                if sources
                else {"source": blocks, "mix": {"small": 1.0}},
            },
        )
        with pytest.raises(UserError, match="domain 'small'"):
            run(config, {"domains": blocks}, tmp_path / "run")


def test_rows_of_a_step_are_dealt_out_among_its_micro_batches(blocks):
    config = config_of(blocks, train={"micro_batch_size": 2})
    sources = Sources.open(blocks["domains"])
    arms = arms_of(["mlm"], sources.domains, "learned", texts=False)
    work = ArmRows(config.train, None, sources, arms.every, arms.trained, arms.selecting(), Group(), seed=3)
    seen = {name: [] for name in sources.domains}
    for step in range(40):
        for one in work.plan(step, dict.fromkeys(arms.trained, 1 / 3)):
            assert len(one.rows) == 2
            seen[one.arm.source] += one.rows.tolist()
    for name, rows in seen.items():
        epoch = rows[: len(sources[name].train)]
        assert len(set(epoch)) == len(epoch)
    assert work.epochs()["sea"] == pytest.approx(len(seen["sea"]) / len(sources["sea"].train))


def test_a_checkpoint_of_a_run_with_a_target_text_becomes_a_model(texts, tmp_path):
    """`RUN@step=N` is made where the target's text is named as it was written, not as it was prepared."""
    run_dir = tmp_path / "run"
    settings = {
        "data": {
            "sources": {name: texts[name] for name in WORDS},
            "mix": "learned",
            "vocab_size": 120,
            "block_size": 16,
        },
        "meta": {"target": {"texts": texts["target"]}},
        "runtime": {"num_workers": 0},
        "run_dir": str(run_dir),
    }
    pretrain(None, merge(BASE, settings), console=Console(quiet=True))
    folder = resolve_model(f"{run_dir}@step=12", lambda text: None)
    assert (Path(folder) / "model.safetensors").is_file()


def test_a_step_has_all_its_rows_however_it_is_cut(blocks):
    config = config_of(blocks, train={"batch_size": 9, "draw": "stratified"})
    sources = Sources.open(blocks["domains"])
    arms = arms_of(["mlm"], sources.domains, "learned", texts=False)
    work = ArmRows(config.train, None, sources, arms.every, arms.trained, arms.selecting(), Group(), seed=3)
    for draw_step in range(20):
        planned = work.plan(draw_step, dict.fromkeys(arms.trained, 1 / 3))
        assert sum(len(one.rows) for one in planned) == 9


def test_on_a_cluster_a_target_text_must_be_prepared(blocks, texts, tmp_path):
    text = str(shutil.copy(texts["target"], tmp_path / "my target.txt"))
    config = config_of(blocks, meta={"target": {"texts": text}}, runtime={"address": "auto"})
    with pytest.raises(UserError, match=r"must be prepared where all machines of a cluster read it") as error:
        with_target_texts(config, blocks["domains"], Display("off"))
    assert shlex.split(str(error.value).partition("read it: ")[2])[:3] == ["mlpt", "prepare", text]
