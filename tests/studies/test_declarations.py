"""What a declaration may say; all that is wrong with one is told in a line before anything runs."""

import json
import re
from pathlib import Path

import pytest
from study_files import write

from mlpt.cli import run
from mlpt.config import load_run_config
from mlpt.errors import UserError
from mlpt.reporting.display import Display
from mlpt.studies.history import declare
from mlpt.studies.places import Places
from mlpt.studies.plan import Plan, Selection
from mlpt.studies.reading import read_study, shipped_studies

WRONG = [
    ({"messurements": {}}, "unknown setting 'messurements'; did you mean 'measurements'"),
    ({"question": None}, "setting 'question': has no default; give it"),
    ({"question": "It helps."}, "setting 'question': ask a question"),
    ({"cells/small/setings": {}}, "unknown setting 'cells.small.setings'; did you mean 'cells.small.settings'?"),
    ({"cells/small": 3}, "cells.small needs settings of its own"),
    ({"cells/a,b": {}}, "the name 'a,b' needs letters"),
    ({"cells": {True: {}}}, "cells: YAML reads a name as True; quote it"),
    ({"cells/.": {}}, "the name '.' needs letters"),
    ({"cells/sm all": {}, "cells/sm-all": {}}, "cells 'sm all' and 'sm-all' would share the folder sm-all"),
    ({"measurements/..": {"held_out": "mlm"}}, "measurements: '..' is no name"),
    ({"seeds": [1, 1]}, "setting 'seeds': a seed is named twice"),
    ({"seeds": 0}, "setting 'seeds'"),
    ({"seeds": 10**9}, "setting 'seeds': 1000000000 seeds are more than 10000"),
    ({"budget": {"steps": 3, "tokens": 9}}, "setting 'budget': a budget is one of steps, tokens and seconds"),
    ({"budget/step": 3}, "unknown setting 'budget.step'; did you mean 'budget.steps'"),
    ({"measurements/mlm": {}}, "setting 'measurements.mlm': is measured in one way, one of held_out, reach"),
    ({"measurements/mlm": {"held_out": "mlm", "score": "sst2"}}, "is measured in one way"),
    ({"measurements/mlm": {"held_uot": "mlm"}}, "did you mean 'measurements.mlm.held_out'?"),
    ({"measurements/mlm": {"held_out": "mml"}}, "measurement 'mlm': 'small' has no objective 'mml'; it has mlm"),
    ({"measurements/mlm": {"score": "sst2"}}, "measurement 'mlm': 'small' is no multi-task work"),
    ({"measurements/x": {"evaluate": "blmip"}}, "measurement 'x': there is no suite 'blmip'; did you mean 'blimp'?"),
    (
        {"measurements/x": {"finetune": {"tasks": ["sts2"]}}},
        "measurement 'x': unknown task 'sts2'; did you mean 'stsb'?",
    ),
    ({"measurements/x": {"finetune": {"tasks": ["sst2"]}}}, "measurement 'x': task 'sst2' needs data: give --data-dir"),
    ({"measurements/x": {"finetune": {}}}, "setting 'measurements.x.finetune': name tasks"),
    ({"measurements/mlm/cells": ["smal"]}, "measurements.mlm: there is no cell 'smal'; did you mean 'small'?"),
    ({"base/settings/train/evaluate_every": 0}, "measurement 'to 6': 'small' is not evaluated along the way"),
    ({"comparisons/0/compare": ["lage", "small"]}, "comparison 1: there is no cell 'lage'; did you mean 'large'?"),
    ({"comparisons/0/compare": ["small", "small"]}, "setting 'comparisons.0': a comparison needs two cells"),
    ({"comparisons/0/measurement": "mml"}, "comparison 1: there is no measurement 'mml'; did you mean 'mlm'?"),
    (
        {"comparisons/0/expect": "better"},
        "setting 'comparisons.0.expect': Input should be 'lower', 'higher' or 'equal'",
    ),
    ({"comparisons/0/expect": "equal"}, "expect: equal needs a margin > 0"),
    ({"measurements/mlm/cells": ["small"]}, "comparison 1: 'mlm' is not measured of 'large'"),
    ({"cells/small/settings": {"train.optimiser.lr": 1}}, "cell 'small': unknown setting 'train.optimiser'"),
    ({"cells/small/settings": {"train.steps": 9}}, "cell 'small': leave out train.steps=9: the budget says"),
    ({"cells/small/settings": {"seed": 9}}, "cell 'small': leave out seed=9: the study sets it"),
    ({"cells/small/settings": {"runtime": {"num_workers": 2}}}, "cell 'small': leave out runtime="),
    ({"cells/small/recipe": "mometa"}, "cell 'small': there is no recipe 'mometa'"),
    ({"cells/small/apart": True}, "cell 'small': apart belongs to work: multitask"),
    ({"cells/small/start": "larg"}, "cells.small.start: there is no cell 'larg'; did you mean 'large'?"),
    ({"cells/small/start": "small"}, "starts from a cell itself"),
    (
        {"cells/small/grid": {"train.optimizer.lr": []}},
        "setting 'cells.small.grid': the grid of train.optimizer.lr has no",
    ),
    ({"cells/small/grid": {"meta.rules.mixture": [{"rule": "uniform"}]}}, "needs names for its values"),
    ({"cells/small/work": "prune", "cells/small/settings": {"sparsity": 0.5}}, "needs a cell to start from"),
    (
        {"measurements/x": {"losses": {"weights": "large"}, "cells": ["small"]}},
        "'small' makes no masks for the weights of",
    ),
    ({"correlations": [{"between": ["mlm", "bilmp"]}]}, "correlations: there is no measurement 'bilmp'"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG)
def test_what_is_wrong_is_told_in_one_line(small_blocks, tmp_path, capsys, changes, says):
    path = write(tmp_path, small_blocks, changes)
    code = run(["study", str(path), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1), error
    assert says in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mixtuers"], "there is no study 'mixtuers'; did you mean 'mixtures'?"),
        ([], "give one study"),
        (["no.yaml"], "there is no study file no.yaml"),
        (["mixtures", "--seeds", "7"], "--seeds: the study has no seed 7, but 0, 1, 2"),
        (["mixtures", "--seeds", "x"], "--seeds takes whole numbers"),
        (["mixtures", "--cells", "unifrom"], "--cells: there is no cell 'unifrom'; did you mean 'uniform'?"),
        (["mixtures", "train.step=3"], "unknown setting 'train.step'; did you mean 'train.steps'?"),
        (["mixtures", "data.source=nowhere/"], "nowhere"),
        (["task_samplers"], "setting 'model': has no default; give it"),
    ],
)
def test_words_that_cannot_be_used(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    code = run(["study", *words])
    error = capsys.readouterr().err
    assert code == 2
    assert error.splitlines()[-1].startswith("mlpt: ")
    assert says in error.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_every_shipped_study_asks_and_can_be_listed(capsys):
    assert run(["study", "--list"]) == 0
    listed = capsys.readouterr().out
    shipped = dict(shipped_studies())
    assert {"mixtures", "masks", "task_samplers"} <= shipped.keys()
    assert all(question.endswith("?") and name in listed for name, question in shipped.items())


def test_the_shipped_mixtures_train_what_the_published_table_says(tmp_path):
    plan = Plan(read_study("mixtures"), Places(tmp_path))
    configs = {name: work.config(2, tmp_path) for name, work in plan.works.items()}
    rules = [config.meta.rules["mixture"].rule for config in configs.values()]
    assert rules == ["fixed", "uniform", "mometas", "hypergradient"]
    for config in configs.values():
        assert (config.seed, config.train.steps, config.train.batch_size, config.data.block_size) == (2, 1500, 32, 64)
        assert (config.train.precision, config.meta.interval, config.meta.lag) == ("bf16", 100, 0)
        assert (config.model.hidden_size, config.model.layers, config.data.vocab_size) == (128, 3, 8192)
        assert list(config.objectives) == ["mlm", "atd", "dtd", "cse"]


def test_the_shipped_masks_start_from_the_same_dense_model(tmp_path):
    plan = Plan(read_study("masks", ["measurements.downstream=null", "correlations=[]"]), Places(tmp_path))
    dense = str(tmp_path / "runs/dense/seed1/model")
    trained = {
        name: work.config(1, tmp_path)
        for name, work in plan.works.items()
        if "sparsity=0.7" in name and plan.study.work(work.cell) == "pretrain"
    }
    assert [name.split()[0] for name in trained] == ["tamt_mlm", "tamt_kd", "tamt_mlm_kd", "meta", "joint"]
    assert {config.model.pretrained for config in trained.values()} == {dense}
    assert {config.masks.sparsity for config in trained.values()} == {0.7}
    assert {config.train.steps for config in trained.values()} == {300}
    assert plan.works["dense"].config(1, tmp_path).train.steps == 1200
    levels = [plan.works[name].config(1, tmp_path) for name in ("imp50", "imp70", "imp90")]
    assert [config.masks.iterative.levels[-1] for config in levels] == [0.5, 0.7, 0.9]
    for config in levels:  # the last level is pruned after the last step
        assert config.train.steps == config.masks.iterative.interval * (len(config.masks.iterative.levels) - 1)
    (command,) = plan.works["random sparsity=0.9"].commands(1, None)
    assert command[:2] == ["prune", dense]
    assert {"--method=random", "--sparsity=0.9", "--seed=1"} <= set(command)


def test_a_grid_makes_a_cell_of_every_combination(small_blocks, tmp_path):
    grid = {
        "train.optimizer.lr": [1e-3, 3e-3],
        "meta.rules.mixture": {"even": {"rule": "uniform"}, "exp": {"rule": "exp3"}},
    }
    path = write(tmp_path, small_blocks, {"cells/sweep": {"grid": grid, "settings": {"train.clip": 2}}})
    cells = read_study(str(path)).declared.cells
    made = {name: cell for name, cell in cells.items() if name.startswith("sweep")}
    assert list(made) == [f"sweep lr={lr} mixture={rule}" for lr in ("0.001", "0.003") for rule in ("even", "exp")]
    plan = Plan(read_study(str(path)), Places(tmp_path))
    config = plan.works["sweep lr=0.003 mixture=exp"].config(0, tmp_path)
    assert (config.train.optimizer.lr, config.meta.rules["mixture"].rule, config.train.clip) == (3e-3, "exp3", 2)


def test_settings_are_laid_on_recipe_base_command_line_and_cell_in_this_order(small_blocks, tmp_path):
    path = write(tmp_path, small_blocks, {"cells/small/settings": {"train.log_every": 7}})
    words = ["train.log_every=3", "train.clip=0.5", "budget.tokens=1280"]
    works = Plan(read_study(str(path), words), Places(tmp_path)).works
    small, large = (works[name].config(5, tmp_path / "run") for name in ("small", "large"))
    assert (small.train.log_every, large.train.log_every) == (7, 3)
    assert (small.train.clip, small.train.tokens, small.seed) == (0.5, 1280, 5)
    assert small.train.total_steps(32) == 1280 / (4 * 32)
    assert small.train.optimizer.weight_decay == load_run_config("mometas").train.optimizer.weight_decay
    assert (small.runtime.num_workers, small.run_dir) == (0, str(tmp_path / "run"))


def test_paths_count_from_the_files_folder(small_blocks, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    changes = {"base/settings/data": {"source": "./texts"}, "measurements/x": {"evaluate": "blimp=../pairs.jsonl"}}
    path = write(tmp_path / "here", small_blocks, changes)
    monkeypatch.chdir(tmp_path)
    declared = read_study(str(path)).declared
    assert declared.base.settings["data"]["source"] == str(tmp_path / "here/texts")
    assert declared.measurements["x"].evaluate.suite == f"blimp={tmp_path}/pairs.jsonl"
    (tmp_path / "corpus").mkdir()
    assert read_study(str(path), ["data.source=corpus"]).given == {"data": {"source": str(tmp_path / "corpus")}}
    found = read_study(str(path), ["data.sources={a: corpus}", "seeds=[4, 7]"])
    assert found.given == {"data": {"sources": {"a": str(tmp_path / "corpus")}}}
    assert list(found.declared.seeds) == [4, 7]


def test_a_part_is_of_the_declaration(small_blocks, tmp_path):
    study = read_study(str(write(tmp_path, small_blocks)))
    assert Selection.of(study, [], []) == Selection(("small", "large"), (0, 1))
    assert Selection.of(study, ["large"], [1]) == Selection(("large",), (1,))
    with pytest.raises(UserError, match="the study has no seed 9"):
        Selection.of(study, [], [9])


def test_only_seeds_and_cells_may_be_added_and_the_table_says_so(small_blocks, tmp_path):
    def read(changes=None, words=()):
        return read_study(str(write(tmp_path, small_blocks, changes)), words)

    out = tmp_path / "out"
    out.mkdir()
    first = declare(read(), out)
    assert declare(read(), out) == first
    assert declare(read({"keep": "models"}), out) == first  # changes no number
    more = declare(read({"seeds": 3, "cells/larger": {"settings": {"train.optimizer.lr": 1e-1}}}), out)
    assert (more.when, more.digest) == (first.when, first.digest)
    (added,) = more.added
    assert added.endswith("cells larger and seeds 2")
    kept = (out / "declared.json").read_bytes()
    for changes, words, says in [
        ({"seeds": 3}, (), r"has changed: cell 'larger'"),
        ({"seeds": 2, "cells/larger": {"settings": {"train.optimizer.lr": 1e-1}}}, (), "has changed: seed 2"),
        ({"budget/steps": 21}, (), "has changed: budget, cell 'larger', seed 2"),
        ({"decision": "Something else."}, (), "has changed: decision"),
        ({"comparisons/0/margin": 0.1}, (), "has changed: comparisons"),
        ({"cells/small/settings": {}}, (), "has changed: cell 'small'"),
        ({}, ["train.clip=3"], "has changed: command_line"),
    ]:
        with pytest.raises(UserError, match=says):
            declare(read(changes, words), out)
    assert (out / "declared.json").read_bytes() == kept


def test_a_recipe_that_changes_is_a_change_of_the_study(small_blocks, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("objectives: [mlm]\ntrain: {clip: 1}\n")
    study = read_study(str(write(tmp_path, small_blocks, {"cells/small/recipe": str(recipe)})))
    declare(study, tmp_path)
    recipe.write_text("objectives: [mlm]\ntrain: {clip: 2}\n")
    with pytest.raises(UserError, match="cell 'small'"):
        declare(study, tmp_path)


def test_a_folder_of_something_else_is_left_alone(small_blocks, tmp_path, capsys):
    path = write(tmp_path, small_blocks)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.md").write_text("mine")
    assert run(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "is not empty (it holds notes.md) and is not a study that mlpt made" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["notes.md"]


def test_text_that_changes_under_a_study_ends_it(small_blocks, tmp_path):
    """Its runs would be compared on different text."""
    study = read_study(str(write(tmp_path, small_blocks)))
    plan = Plan(study, Places(tmp_path / "out"))
    part = Selection.of(study, [], [])
    with Display("off") as display:
        plan.prepare(part, display)
        plan.prepare(part, display)
        (remembered,) = (tmp_path / "out/blocks").glob("*/blocks.json")
        remembered.write_text(json.dumps({"blocks": small_blocks, "digest": "of another text"}))
        with pytest.raises(UserError, match="the text has changed"):
            plan.prepare(part, display)


def test_the_documented_declaration_can_be_run(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs/STUDIES.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    plan = Plan(read_study(str(tmp_path / "mine.yaml")), Places(tmp_path))
    assert list(plan.works) == [f"{rule} lr={lr}" for rule in ("uniform", "learned") for lr in ("0.001", "0.003")]
    documented = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    assert documented == dict(shipped_studies()).keys()


def test_the_shipped_grid_of_self_evolution_asks_once_about_all_that_is_to_come(tmp_path):
    plan = Plan(read_study("self_evolution_grid"), Places(tmp_path))
    guided = [name for name in plan.works if name.startswith("guided ")]
    assert len(guided) == 7 * 3 * 5
    config = plan.works["guided metric=entropy share=0.3 smoothing=frozen"].config(1, tmp_path)
    rule = config.meta.rules["guide"]
    assert (rule.metric, rule.share, config.meta.lag) == ("entropy", (0.3, 0.3), 0)
    assert config.meta.interval > config.train.steps
    assert config.objectives["guided"]["smoothing"]["reference"] == "frozen"
    published = plan.works["published"].config(1, tmp_path)
    assert (published.meta.rules["guide"].metric, published.meta.rules["guide"].threshold) == ("loss", None)  # its own
    assert published.objectives["guided"]["hard"]["mask_share"] == 1
    assert list(plan.works["plain"].config(1, tmp_path).objectives) == ["mlm"]


def test_the_shipped_study_of_self_evolution_trains_on_from_one_encoder(tmp_path):
    suites = [f"measurements.{name}=null" for name in ("zorro", "sst2", "cola", "mrpc", "rte")]
    plan = Plan(read_study("self_evolution", suites), Places(tmp_path))
    configs = {name: work.config(2, tmp_path) for name, work in plan.works.items()}
    base = str(tmp_path / "runs/base/seed2/model")
    assert {name for name, config in configs.items() if config.model.pretrained == base} == configs.keys() - {"base"}
    assert {config.train.steps for name, config in configs.items() if name != "base"} == {400}
    assert "guide" in configs["online"].meta.rules
    assert configs["online"].meta.interval < configs["guided"].meta.interval
    assert list(configs["online"].objectives) == ["mlm", "guided"]
    assert list(configs["decaying"].objectives) == ["mlm", "mlm30", "mlm22"]
    assert configs["learned knobs"].meta.rules["knobs"].learn == ("smoothing", "rate")
