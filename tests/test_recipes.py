"""Every packaged recipe is a whole, valid configuration, and the written-down configuration repeats it."""

import pytest
import yaml

from mlpt.arms import arms_of
from mlpt.config import RunConfig, load_run_config, read_recipe, recipe_names
from mlpt.data.prepare import prepare
from mlpt.errors import UserError
from mlpt.run.build import first_mixture
from mlpt.settings import load_settings


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_resolves_to_a_run(name):
    config = load_run_config(name, {})
    arms = arms_of(list(config.objectives), ["legal", "code"], config.data.mix, texts=False)
    assert sum(first_mixture(config, arms).values()) == pytest.approx(1)


@pytest.mark.parametrize("name", recipe_names())
def test_the_resolved_configuration_reads_back_as_itself(name):
    config = load_run_config(name, {})
    assert load_settings(RunConfig, yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_short_enough_to_read(name):
    assert len(yaml.safe_dump(read_recipe(name)).splitlines()) <= 60


def test_a_user_can_write_a_recipe_of_their_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nobjectives: [mlm, cse]\ntrain: {steps: 7}\n")
    config = load_run_config(str(path), {"train": {"batch_size": 4}})
    assert (config.train.steps, config.train.batch_size, list(config.objectives)) == (7, 4, ["mlm", "cse"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("train: [", "is not YAML"),
        ("just words", "holds no settings"),
        ("trian: {}", "did you mean 'train'?"),
        ("train: {steps: 3}\nseed: 1\ntrain: {batch_size: 4}", "gives 'train' twice, again in line 3; keep one"),
        ("train: {steps: 3, steps: 4}", "gives 'steps' twice, again in line 1; keep one"),
    ],
)
def test_a_broken_recipe_is_one_line(tmp_path, content, says):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_run_config(str(path), {})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_objective_set_to_null_is_taken_out():
    config = load_run_config("quickstart", {"objectives": {"dtd": None}})
    assert list(config.objectives) == ["mlm", "atd"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_step_is_cut_alike_by_default_whatever_the_number_of_workers(workers):
    train = load_run_config("quickstart", {"runtime": {"num_workers": workers}}).train
    assert (train.micro_batch_size, train.micro_batches) == (16, 2)
    assert "micro_batch_size: 16" in load_run_config("quickstart", {}).to_yaml()


def test_more_workers_than_micro_batches_are_told_what_to_set():
    with pytest.raises(UserError, match=r"3 workers need a micro-batch each.* set train.micro_batch_size=8 or less"):
        load_run_config("quickstart", {"runtime": {"num_workers": [1, 3]}})
    four = {"runtime": {"num_workers": 4}, "train": {"micro_batch_size": 8}}
    assert load_run_config("quickstart", four).train.micro_batches == 4
    with pytest.raises(UserError, match=r"raise train.batch_size"):
        load_run_config("quickstart", {"runtime": {"num_workers": 33}})


def test_the_quickstarts_cap_is_for_the_embedded_corpus_alone(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("\n\n".join(f"Document {number} says {'this and that ' * 40}" for number in range(400)))
    own = load_run_config("quickstart", {"data": {"source": str(text), "docs_bytes": 1000, "vocab_size": 200}}).data
    manifest = prepare(own, str(tmp_path / "blocks"))
    assert sum(split.documents for split in manifest.splits.values()) == 400
