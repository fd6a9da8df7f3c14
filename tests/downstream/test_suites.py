"""The registry of suites, their settings, and measuring several models."""

import json
import statistics

import pytest
import transformers
from own_suite import Length
from scipy import stats
from tiny_subjects import tiny_encoder, tokenizer

from mlpt.downstream.cloze import Cloze
from mlpt.downstream.pair_accuracy import MinimalPairs
from mlpt.downstream.probes import TaskProbe, WordProbe
from mlpt.downstream.suite_report import over_models, report
from mlpt.downstream.suites import build_suites, choose_suites, measure
from mlpt.errors import UserError
from mlpt.reporting.steps import Steps

SHOW = Steps().show
PAIR = {"sentence_good": "the travelers ran.", "sentence_bad": "the travelers run.", "UID": "p", "field": "f"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three saved models: one recipe, other seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in range(3):
        tiny_encoder("bert", "wordpiece", seed).save(folder / str(seed), tokenizer("wordpiece"))
    return {f"seed {seed}": str(folder / str(seed)) for seed in range(3)}


def one_of(models):
    return {"seed 0": models["seed 0"]}


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [PAIR, {"sentence_good": "who ran?", "sentence_bad": "who the?", "UID": "q", "field": "f"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def last(iterator):
    *_, end = iterator
    return end


def test_words_name_suites_tasks_and_ones_own_classes_with_their_data():
    chosen = choose_suites(
        ["blimp,zorro=hub:a/b:c,cloze=a.jsonl", "pos=x=y.conllu", "sst2=GLUE", "own_suite:Length=a b"]
    )
    assert [(one.name, one.suite, one.settings) for one in chosen] == [
        ("blimp", MinimalPairs, {"data": "hub:nyu-mll/blimp"}),
        ("zorro", MinimalPairs, {"data": "hub:a/b:c"}),
        ("cloze", Cloze, {"data": "a.jsonl"}),
        ("pos", WordProbe, {"data": "x=y.conllu"}),
        ("sst2", TaskProbe, {"task": "sst2", "data": "GLUE"}),
        ("length", Length, {"data": "a b"}),
    ]


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        (["blimb=x"], [], "there is no suite 'blimb'; did you mean 'blimp'?"),
        (["zzz"], [], "there are blimp, zorro"),
        (["blimp=a", "blimp=b"], [], "suite 'blimp' is named twice"),
        (["no.such.module:Class"], [], "cannot import the suite no.such.module:Class"),
        (["own_suite:NoSuite"], [], "own_suite:NoSuite is no suite"),
        (["own_suite:Length=a"], ["length.fact=2"], "did you mean 'length.factor'?"),
        (["own_suite:Length=a"], ["blimp.masking=plain"], "'blimp' is no setting of the suites length"),
        (["own_suite:Length"], [], "suite 'length': it needs data"),
        (["own_suite:Length=a"], ["length=2"], "'length' is no setting of the suites length"),
        (["zorro"], [], "suite 'zorro': it needs data"),
        (["blimp=nowhere"], ["blimp.masking=whole"], "setting 'blimp.masking'"),
        (["blimp=nowhere"], ["blimp"], "write key=value"),
    ],
)
def test_mistakes_get_one_line_before_anything_is_measured(words, settings, says):
    with pytest.raises(UserError) as error:
        build_suites(choose_suites(words), settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_reach_their_suite_and_are_in_the_result(models, pairs):
    suites = build_suites(
        choose_suites([f"pairs={pairs}", "own_suite:Length=a hill"]), ["length.factor=2", "pairs.masking=plain"]
    )
    results = last(measure(one_of(models), suites, SHOW))
    assert results["pairs"]["settings"]["masking"] == "plain"
    (length,) = results["length"]["models"]["seed 0"]["lines"]
    assert length["value"] == 2 * len(tokenizer("wordpiece").tokenize("a hill"))
    assert json.loads(json.dumps(results)) == results


def test_scores_over_models_have_mean_spread_and_students_interval(models, pairs):
    suites = build_suites(choose_suites([f"pairs={pairs}"]))
    results = last(measure(models, suites, SHOW))["pairs"]
    every = [
        {(line["level"], line["name"]): line["value"] for line in results["models"][model]["lines"]} for model in models
    ]
    for line in results["over_models"]:
        values = [one[line["level"], line["name"]] for one in every]
        assert line["mean"] == pytest.approx(statistics.fmean(values))
        assert line["spread"] == pytest.approx(statistics.stdev(values))
        half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / 3**0.5
        assert (line["low"], line["high"]) == pytest.approx((line["mean"] - half, line["mean"] + half))
    text = report("pairs", suites["pairs"], results)
    assert all(model in text for model in models)
    assert "spread" in text
    assert " p " not in text, "paradigms are in the JSON alone"


def test_one_model_has_no_spread(models, pairs):
    results = last(measure(one_of(models), build_suites(choose_suites([f"pairs={pairs}"])), SHOW))["pairs"]
    assert results["over_models"] == []
    assert "overall" in report("pairs", build_suites(choose_suites([f"pairs={pairs}"]))["pairs"], results)


def test_scores_that_some_model_lacks_are_not_averaged():
    line = {"level": "overall", "name": "a", "metric": "m", "value": 0.5, "baseline": None}
    summary = over_models([{"lines": [line, line | {"name": "b"}]}, {"lines": [line | {"value": 0.7}]}])
    assert [(one["name"], one["mean"]) for one in summary] == [("a", pytest.approx(0.6))]


def test_a_model_that_cant_be_loaded_is_told_before_the_first_is_scored(models, pairs):
    suites = build_suites(choose_suites([f"pairs={pairs}"]))
    begun = []
    with pytest.raises(UserError, match="no folder"):
        last(measure(one_of(models) | {"other": "./nowhere"}, suites, lambda what, done, total: begun.append(what)))
    assert begun == []


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForSequenceClassification"])
def test_a_model_without_a_language_head_is_probed_and_never_scored_by_a_random_one(models, pairs, kind, tmp_path):
    getattr(transformers, kind).from_pretrained(models["seed 0"]).save_pretrained(tmp_path)
    tokenizer("wordpiece").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no trained language-modelling head") as error:
        last(measure({"headless": str(tmp_path)}, build_suites(choose_suites([f"pairs={pairs}"])), SHOW))
    assert "\n" not in str(error.value)
    words = tmp_path / "words.tsv"
    words.write_text("the\tDET\nhill\tNOUN\n\n" * 8)
    results = last(measure({"headless": str(tmp_path)}, build_suites(choose_suites([f"pos={words}"])), SHOW))
    assert results["pos"]["models"]["headless"]["lines"]


def test_progress_is_told_in_percent(models, pairs):
    told = []
    last(measure(one_of(models), build_suites(choose_suites([f"pairs={pairs}"])), lambda *step: told.append(step)))
    assert told[-1] == ("pairs of seed 0", 100, 100)


def test_auto_is_bf16_where_the_hardware_multiplies_it(monkeypatch, models, pairs):
    suites = build_suites(choose_suites([f"pairs={pairs}"]))
    for able, expected in (({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "float32")):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda able=able: able)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        (measured,) = last(measure(one_of(models), suites, SHOW))["pairs"]["models"].values()
        assert measured["precision"] == expected
