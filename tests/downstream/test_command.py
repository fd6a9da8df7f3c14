"""From the words of `mlpt finetune` to its settings: presets, task files, lists of one, and what is refused."""

import pytest
from torch import nn
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.config import read_recipe, recipe_names
from mlpt.downstream.command import preset_names, read_preset, settings_from, tasks_of_files
from mlpt.downstream.config import FinetuneConfig, for_task
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.errors import UserError
from mlpt.settings import parse_overrides
from mlpt.sparsity.optim import TransformersAdamW
from mlpt.training.optimizer import make_optimizer
from mlpt.training.schedule import learning_rate


def configured(preset: str = "", *words: str, **given: object) -> FinetuneConfig:
    values = {"model": "m", **(read_preset(preset) if preset else {"tasks": ["sst2"]}), **given}
    return settings_from(FinetuneConfig, values, None, parse_overrides(words))


# Specification of TAMT, B10, B11: task, rate, batch, epochs, tokens, evaluation every (None: each epoch), seeds, rows.
PUBLISHED = {
    "tamt_glue": ("cola", 2e-5, 32, 3, 128, 50, (1, 2, 3), None),
    "tamt_mnli": ("mnli", 2e-5, 32, 3, 128, 500, (1, 2, 3), None),
    "tamt_squad": ("squad", 3e-5, 16, 2, 384, 1000, (1, 2, 3), None),
    "tamt_few_glue": ("cola", 2e-5, 32, 8, 128, 50, (1, 2, 3, 4, 5), 1000),
    "tamt_few_mnli": ("mnli", 2e-5, 32, 8, 128, 500, (1, 2, 3, 4, 5), 1000),
    "tamt_few_squad": ("squad", 3e-5, 16, 8, 384, None, (1, 2, 3, 4, 5), 1000),
}


def test_every_preset_is_known_here_and_none_is_a_recipe_of_pretraining():
    assert set(preset_names()) == set(PUBLISHED)
    assert not [name for name in recipe_names() if name.startswith("finetune")]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_preset_holds_the_published_protocol(name):
    task, rate, batch, epochs, length, every, seeds, rows = PUBLISHED[name]
    config = configured(name)
    assert task in config.tasks
    assert (config.learning_rates, config.batch_size, config.epochs) == ((rate,), batch, epochs)
    assert (config.max_length, config.evaluate_every, config.seeds, config.subset) == (length, every, seeds, rows)
    assert (config.clip, config.evaluate_epochs, config.length_window) == (1.0, 1.0, 1)
    assert [learning_rate(config.schedule, step, 100, 1.0) for step in (0, 50)] == [1.0, 0.5]  # no warm-up, linear


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_presets_optimiser_is_the_adamw_of_its_time_without_decay(name):
    optimizer = make_optimizer(nn.Linear(2, 2), configured(name).optimizer)
    assert isinstance(optimizer, TransformersAdamW)
    assert {(*group["betas"], group["eps"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.9, 0.999, 1e-8, 0.0)
    }


def test_presets_select_what_the_published_scripts_select():
    assert for_task(configured("tamt_glue").metric, "stsb") == "pearson"
    assert for_task(configured("tamt_glue").metric, "cola") is None  # the task's own: Matthews
    for name in ("tamt_mnli", "tamt_few_mnli"):
        assert for_task(configured(name).select_split, "mnli") == "dev_mismatched"
    span = configured("tamt_squad").span
    assert (span.doc_stride, span.question_length, span.answer_length, span.n_best) == (128, 64, 30, 20)


def test_words_win_over_a_preset():
    config = configured("tamt_few_glue", "subset=5000", "epochs=3", "tasks=cola")
    assert (config.subset, config.epochs, config.tasks, config.batch_size) == (5000, 3, ("cola",), 32)


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(UserError, match="no preset 'tamt'; there are tamt_few_glue, tamt_few_mnli"):
        read_preset("tamt")


@pytest.mark.parametrize("words", [["learning_rates=3e-4"], ["learning_rates=[3e-4]"]])
def test_one_value_may_stand_for_a_list_of_one(words):
    config = configured("", *words, "seeds=7", "tasks=sst2,rte")
    assert (config.learning_rates, config.seeds, config.tasks) == ((3e-4,), (7,), ("sst2", "rte"))


@pytest.mark.parametrize("cls", [FinetuneConfig, MultitaskConfig])
def test_an_optimiser_that_is_given_in_part_stays_that_of_fine_tuning(cls):
    config = settings_from(cls, {"model": "m", "tasks": ["sst2"]}, None, {"optimizer": {"eps": 1e-7}})
    assert (config.optimizer.eps, config.optimizer.betas, config.optimizer.weight_decay) == (1e-7, (0.9, 0.999), 0.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["learning_rates=[-1]"], "greater than 0"),
        (["learning_rates=[0]"], "greater than 0"),
        (["learning_rates=.nan"], "finite|greater than 0"),
        (["learning_rates=.inf"], "finite"),
        (["epochs=.inf"], "finite"),
        (["optimizer.lr=1e-4"], "set learning_rates"),
        (["dense=true", "masks=m"], "exclude each other"),
    ],
)
def test_what_cannot_train_is_refused_when_it_is_read(words, says):
    with pytest.raises(UserError, match=says):
        configured("", *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "sst2", "rte", "base"], "'rte' is a task and stands where the model is expected"),
        (["base", "--tasks", "sst2", "--preset", "tamt"], "no preset 'tamt'"),
        (["base", "--preset", "tamt_glue", "--multitask"], "presets are protocols of single tasks"),
        (["base", "--task-file", "none.yaml"], "cannot read the task file none.yaml"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, says):
    with pytest.raises(UserError) as error:
        raise CliRunner().invoke(app, ["finetune", *words]).exception
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_task_files_name_the_tasks_that_are_trained_on(tmp_path):
    for name in ("mood", "tone"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\ntrain: {name}.csv\nfirst: text\n")
    given = tasks_of_files([str(tmp_path / "mood.yaml"), str(tmp_path / "tone.yaml")])
    config = settings_from(FinetuneConfig, {"model": "m", **given}, "GLUE", {})
    assert config.tasks == ("mood", "tone")
    assert [own.train for own in config.source.own] == [str(tmp_path / f"{name}.csv") for name in ("mood", "tone")]
    assert config.source.data_dir == "GLUE"


@pytest.mark.parametrize("words", [[], ["learning_rates=[1e-3,3e-4]", "optimizer.weight_decay=0.1"]])
def test_the_settings_that_a_fine_tuning_leaves_can_be_given_back(tmp_path, words):
    config = settings_from(
        FinetuneConfig, {"model": "m", "tasks": ["docs_package"], "out": "o"}, None, parse_overrides(words)
    )
    (tmp_path / "finetune.yaml").write_text(config.to_yaml())
    given = read_recipe(str(tmp_path / "finetune.yaml"))
    assert settings_from(FinetuneConfig, given, None, {}) == config
