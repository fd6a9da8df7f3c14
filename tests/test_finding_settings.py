"""Finding settings: `mlpt settings`, `recipes`, `--dry-run`, `--version`, completion."""

import json
import os
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.cli_settings import TREES, tree_of
from mlpt.config import RunConfig, load_run_config, recipe_names
from mlpt.errors import UserError
from mlpt.objectives.guided import HardGuide
from mlpt.run.launch import pretrain
from mlpt.run.planning import plan
from mlpt.setting_list import entries_of
from mlpt.setting_names import docstring_entries, keys_of
from mlpt.settings import parse_overrides

SMALL = [
    *("model.hidden_size=32", "model.layers=2", "model.heads=2", "objectives=[mlm]", "meta.rules.mixture.rule=uniform"),
    *("train.steps=3", "train.batch_size=4", "train.evaluate_batches=1", "runtime.num_workers=0"),
    *("report.progress=off", "report.tensorboard=false", "report.html=false"),
]


def mlpt(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_key_of_the_tree_is_listed_once_for_each_choice():
    entries = list(entries_of(RunConfig))
    assert {entry.key for entry in entries} == {key.name for key in keys_of(RunConfig)}
    named = [(entry.key, entry.only_with) for entry in entries]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("command", sorted(TREES))
def test_every_setting_says_what_it_means(command: str):
    for entry in entries_of(tree_of(command)):
        names_its_choice = entry.type.startswith("one of ") and "," not in entry.type
        assert entry.meaning or entry.is_section or names_its_choice, entry.key


def test_a_class_says_what_the_settings_it_inherits_mean():
    assert docstring_entries(HardGuide)["probability"].startswith("chance of a hard position")
    assert docstring_entries(HardGuide)["temperature"].startswith("how sharp")
    assert docstring_entries(HardGuide)["mask_share"]  # of a class that two others stand between


def test_listed_defaults_are_those_of_the_configuration():
    """A default, given as a word of the command line, changes nothing."""
    plain = load_run_config("quickstart")
    for entry in entries_of(RunConfig):
        if entry.is_section or entry.only_with or entry.default in ("", "from others", "null"):
            continue
        if entry.key.split(".")[0] not in ("train", "runtime", "report"):
            continue
        read = yaml.safe_load(entry.default)
        section = RunConfig()
        for part in entry.key.split("."):
            section = getattr(section, part)
        shown = json.loads(json.dumps(section, default=str))
        assert shown == read, entry.key
        assert load_run_config("quickstart", parse_overrides([f"{entry.key}={entry.default}"])).name == plain.name


def test_a_key_is_shown_with_type_default_and_meaning():
    assert mlpt("settings", "train.batch_size") == (
        "train.batch_size = 32  (integer, > 0)\n    blocks in a global step\n"
    )
    (entry,) = json.loads(mlpt("settings", "train.precision", "--json"))
    assert (entry["type"], entry["default"]) == ("one of float32, bf16, fp16", "float32")
    assert "| `train.clip` | number, >= 0 | `1.0` | largest gradient norm; 0: no clipping |" in mlpt(
        "settings", "train", "--markdown"
    )
    assert "num_workers" in mlpt("settings", "runtime")
    assert "learning_rates" in mlpt("settings", "--of", "finetune")


def test_a_wrong_key_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match=r"there is no setting 'train.lr'; did you mean 'train.optimizer.lr'"):
        mlpt("settings", "train.lr")


def test_every_packaged_recipe_fits_the_schema_for_editors():
    schema = json.loads(mlpt("settings", "--schema"))
    for name in recipe_names():
        jsonschema.validate(load_run_config(name).model_dump(mode="json"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"train": {"stepz": 3}}, schema)


def test_recipes_are_listed_and_printed():
    listed = mlpt("recipes")
    assert all(name in listed for name in recipe_names())
    assert yaml.safe_load(mlpt("recipes", "quickstart"))["name"] == "quickstart"
    assert yaml.safe_load(mlpt("recipes", "tamt_glue"))["seeds"] == [1, 2, 3]
    with pytest.raises(UserError, match="there is no recipe 'nothing'"):
        mlpt("recipes", "nothing")


def test_a_dry_run_shows_what_would_run_and_writes_nothing(tmp_path, monkeypatch, small_blocks):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [f"data.source={small_blocks}", *SMALL]
    result = CliRunner().invoke(app, ["pretrain", "--dry-run", *words])
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout) == load_run_config(None, parse_overrides(words)).model_dump(mode="json")
    assert "3 steps of 4 blocks (2 micro-batches): 128 tokens a step, 384 in all" in result.stderr
    assert "traffic: a checkpoint of 1 MiB every 250 steps" in result.stderr  # of a mixture that nothing learns
    assert "time: more than" in result.stderr
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"train.stepz"):
        mlpt("pretrain", "--dry-run", "train.stepz=3")


def test_a_dry_run_counts_what_fsdp_holds_and_sends(small_blocks):
    """A layer of BERT: four products of the width h squared and two of h by 4 h with their biases, two layer norms."""
    width, layers, workers, passes = 256, 8, 4, 2
    words = [f"data.source={small_blocks}", *SMALL, "model.architecture=bert", f"model.hidden_size={width}"]
    words += [f"model.layers={layers}", f"runtime.num_workers={workers}"]
    words += [f"train.batch_size={workers * passes}", "train.micro_batch_size=1"]
    told = {
        way: "\n".join(plan(load_run_config(None, parse_overrides([*words, f"train.parallel={way}"]))))
        for way in ("ddp", "fsdp")
    }
    every = int(re.search(r"model: ([\d,]+) parameters", told["ddp"]).group(1).replace(",", ""))
    sharded = layers * (4 * (width**2 + width) + 2 * 4 * width**2 + 4 * width + width + 2 * 2 * width)
    one_float = 4 / 2**20  # MiB
    held = {"ddp": every, "fsdp": every - sharded + sharded / workers}
    moved = {"ddp": 2 * every, "fsdp": 2 * (every - sharded) + (2 * passes + 1) * sharded}
    for way in ("ddp", "fsdp"):
        assert f"memory: {4 * one_float * held[way]:,.0f} MiB in each worker" in told[way]
        assert f"traffic: {one_float * moved[way] * (workers - 1) / workers:,.0f} MiB of gradients" in told[way]


def test_a_dry_run_counts_the_gradients_of_arms_that_are_kept_for_look_aheads():
    """Four arms, each told of ten steps: every sum is sent once by each of two workers."""
    words = [
        *SMALL,
        "data.sources={a: docs, b: docs}",
        "data.mix=learned",
        "data.vocab_size=8192",
        "objectives=mlm,clm",
    ]
    words += ["meta.rules.mixture.rule=dga", "meta.lookahead.engine=alignment", "meta.lookahead.averaged_steps=10"]
    words += ["meta.interval=20", "meta.lag=20", "runtime.num_workers=2", "model.hidden_size=256"]
    told = "\n".join(plan(load_run_config(None, parse_overrides(words))))
    parameters = int(re.search(r"model: ([\d,]+) parameters", told).group(1).replace(",", ""))
    mib = 4 * parameters / 2**20
    assert f"{4 * 10 * mib:,.0f} MiB of arms' gradients every 20 steps from each" in told
    assert f"a snapshot of {(3 + 1 + 4) * mib:,.0f} MiB every 20 steps" in told


def test_a_dry_run_knows_the_model_and_the_pace_of_a_run_that_did_the_same(tmp_path, monkeypatch, small_blocks):
    monkeypatch.chdir(tmp_path)
    words = [f"data.source={small_blocks}", *SMALL]
    run = pretrain(None, parse_overrides([*words, f"run_dir={tmp_path / 'runs/first'}", "train.log_every=1"]))
    from transformers import AutoModelForMaskedLM

    count = AutoModelForMaskedLM.from_pretrained(run.folder / "model").num_parameters()
    told = CliRunner().invoke(app, ["pretrain", "--dry-run", *words]).stderr
    assert f"model: {count:,} parameters" in told
    assert f"of {run.folder}, whose steps do the same" in told


def test_the_version_and_completion_of_a_shell():
    from importlib import metadata

    assert mlpt("--version").startswith(f"mlpt {metadata.version('mlpt')} (Python ")
    asked = {"_MLPT_COMPLETE": "complete_bash", "COMP_WORDS": "mlpt pretrain quick", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "mlpt"], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["quickstart"]
