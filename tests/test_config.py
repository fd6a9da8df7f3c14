"""What cannot work together is refused when the configuration is read, in one line that says what to change."""

import pytest

from mlpt.config import load_run_config
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.errors import UserError
from mlpt.settings import load_settings


@pytest.mark.parametrize(
    ("recipe", "settings", "says"),
    [
        ("mometas", {"train": {"draw": "weighted"}}, "train.draw=weighted draws none"),
        (
            "quickstart",
            {"train": {"optimizer": {"kind": "transformers_adamw"}}},
            "rule 'hypergradient' looks ahead through AdamW: set train.optimizer.kind=adamw",
        ),
        (
            "tamt_imp",
            {"meta": {"rules": {"mixture": {"rule": "hypergradient"}}}},
            "set train.optimizer.kind=adamw, which is transformers_adamw here",
        ),
        ("tamt_meta", {"train": {"optimizer": {"kind": "bert_adam"}}}, "rule 'mask_scores' looks ahead through AdamW"),
        (
            "tamt_meta",
            {"masks": {"iterative": {"interval": 10}}},
            "meta.rules.masks keeps each matrix's sparsity and would undo masks.iterative",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(recipe, settings, says):
    with pytest.raises(UserError) as error:
        load_run_config(recipe, settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_multi_task_training_cannot_look_ahead_through_another_optimiser_either():
    settings = {"model": "m", "tasks": ["sst2"], "optimizer": {"kind": "bert_adam"}}
    learned = {"sampler": {"rule": "policy", "learner": {"rule": "hypergradient"}}}
    assert load_settings(MultitaskConfig, settings).optimizer.kind == "bert_adam"
    with pytest.raises(UserError, match=r"set optimizer\.kind=adamw, which is bert_adam here"):
        load_settings(MultitaskConfig, settings | learned)


@pytest.mark.parametrize("rule", ["uniform", "exp3", "famo", "hypergradient"])
def test_rules_that_need_no_draws_take_weighted_steps(rule):
    config = load_run_config("mometas", {"train": {"draw": "weighted"}, "meta": {"rules": {"mixture": {"rule": rule}}}})
    assert config.train.draw == "weighted"
