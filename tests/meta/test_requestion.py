"""Rule `requestion`: the rows that come are scored at the snapshot, and training masks by what was found."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killing import KilledError, killed_at
from ranks import run_ranks
from running import run
from safetensors.torch import load_file

from mlpt.config import RunConfig
from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import take_snapshot
from mlpt.objectives.base import attention_mask_of
from mlpt.objectives.fresh import Fresh
from mlpt.randomness import torch_generator
from mlpt.run.build import arms_in, build_learner, build_model, open_sources, run_rank
from mlpt.settings import load_settings, merge
from mlpt.storage.state import State
from mlpt.training.arm_rows import ArmRows
from mlpt.training.group import Group
from mlpt.training.optimizer import make_optimizer
from mlpt.training.outer import Outer
from mlpt.training.tracker import read_metrics

TINY = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "objectives": {"mlm": {}, "guided": {"guide": "hard", "hard": {}}},
    "meta": {
        "interval": 4,
        "lag": 2,
        "rules": {"mixture": {"rule": "uniform"}, "guide": {"rule": "requestion", "share": [0.1, 0.3]}},
    },
    "train": {
        "steps": 14,
        "batch_size": 8,
        "log_every": 1,
        "evaluate_batches": 2,
        "checkpoint_every": 4,
        "keep": 10,
    },
    "report": {"tensorboard": False},
}


def config_with(**changes) -> RunConfig:
    return load_settings(RunConfig, merge(TINY, changes))


def told(folder: Path) -> list[tuple]:
    kept = ("step", "loss", "held_out", "held_out_before", "mixture", "policy")
    lines = [(line, line.get("meta", {}).get("guide")) for line in read_metrics(folder)]
    return [(*(json.dumps(line.get(key)) for key in kept), json.dumps(guide)) for line, guide in lines]


def only(rule: dict) -> dict:
    """Settings with this rule's alone."""
    return {"meta": {"rules": {"guide": {"rule": "requestion", "share": None, **rule}}}}


def answer_of(config, blocks, step=4, rows=(3, 5, 8, 40)):
    """What a learner answers to one snapshot, and the model of that snapshot."""
    sources = open_sources(config, blocks)
    torch.manual_seed(3)
    model = build_model(config, sources)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    snapshot = take_snapshot(model, make_optimizer(model, config.train.optimizer), step, 1e-3, moments=False)
    learner = build_learner(config, sources, torch.device("cpu"))
    answer = learner.update(snapshot, Evidence(rows={"all": np.array(rows)}))
    return answer, model.eval(), sources


def test_rows_that_come_are_scored_as_the_stock_model_at_the_snapshot_scores_them(small_blocks):
    answer, model, sources = answer_of(config_with(**only({"threshold": 0.1})), small_blocks)
    fresh = Fresh.of(answer.parts["guide"])
    assert fresh.rows.tolist() == [3, 5, 8, 40]
    assert fresh.threshold == pytest.approx(0.1)
    tokens = sources.train.batch(fresh.rows).tokens
    mask = attention_mask_of(tokens, sources.vocabulary.pad)
    with torch.no_grad():
        logits = model.backbone(tokens, attention_mask=None if mask is None else mask.long()).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    expected = expected.view(tokens.shape).masked_fill(tokens == sources.vocabulary.pad, 0)
    torch.testing.assert_close(fresh.scores.float(), expected, rtol=2e-3, atol=1e-3)
    assert expected.std() > 0.1
    assert answer.report["guide"]["hard_share"] > 0.9


def test_thresholds_and_shares_move_with_the_progress_of_the_run(small_blocks):
    for step, progress in ((0, 2 / 14), (8, 10 / 14)):
        settings = only({"threshold": [4.0, 1.0]})
        found = answer_of(config_with(**settings), small_blocks, step)[0].parts["guide"]
        assert found.values["threshold"] == pytest.approx(4 - 3 * progress)
        answer = answer_of(config_with(), small_blocks, step)[0]
        assert answer.parts["guide"].values["hard_share"] == pytest.approx(0.1 + 0.2 * progress, abs=0.02)


def test_a_threshold_that_leaves_almost_nothing_is_told_once(small_blocks):
    answer = answer_of(config_with(**only({"threshold": 60.0})), small_blocks)[0]
    (warning,) = answer.report["warnings"]
    assert "only 0.0000% of the tokens score above 60 (loss)" in warning
    assert answer.state.values["guide"]["warned"]
    assert "warnings" not in answer_of(config_with(), small_blocks)[0].report


def test_a_share_of_the_blocks_is_questioned_and_which_ones_follows_from_seed_and_step(small_blocks):
    config = config_with(**only({"blocks": 0.5}))
    rows = np.arange(40)
    first, again, later = (
        Fresh.of(answer_of(config, small_blocks, step, rows)[0].parts["guide"]).rows.tolist() for step in (4, 4, 8)
    )
    assert len(first) == 20
    assert first == again != later


def test_a_guide_masks_the_rows_that_it_knows_and_falls_back_for_others_and_other_splits(small_blocks):
    config = config_with(objectives={"guided": {"hard": {"fallback": None}}})
    sources = open_sources(config, small_blocks)
    guided = build_model(config, sources).objectives["guided"]
    batch = sources.train.batch(np.array([7, 2, 9]))
    scores = torch.zeros(2, sources.block_size, dtype=torch.float16)
    scores[0, 3], scores[1, 5], scores[1, 6] = 0.5, 0.5, 0.4  # of rows 2 and 9
    part = Fresh(np.array([2, 9]), scores, 0.45).part()
    guided.obey(part)
    inputs = guided.corrupt(batch, torch_generator(0, "guided"))
    length = sources.block_size
    assert inputs.positions.tolist() == [length + 3, 2 * length + 5]
    guided.obey(State({**part.values, "threshold": 0.3}, part.tensors))
    assert len(guided.corrupt(batch, torch_generator(0, "guided")).positions) == 3
    other = Batch(batch.tokens, batch.rows, "dev")
    assert len(guided.corrupt(other, torch_generator(0, "guided")).positions) == 0
    guided.obey(State())
    assert len(guided.corrupt(batch, torch_generator(0, "guided")).positions) == 0


@pytest.mark.parametrize(("draw", "mix"), [("step", None), ("stratified", "learned")])
def test_the_rows_that_a_learner_is_told_of_are_those_that_training_takes(small_blocks, draw, mix):
    config = config_with(train={"draw": draw})
    sources = open_sources(config, small_blocks)
    arms = arms_in(config, sources)
    target = arms.selecting()
    work = ArmRows(
        config.train, build_model(config, sources), sources, arms.every, arms.trained, target, Group(), config.seed
    )
    mixture = {"mlm": 0.5, "guided": 0.5}
    for step in range(4):
        work.plan(step, mixture)
    promised = work.rows(4, 6, 10, mixture)
    for step in range(4, 6):
        work.plan(step, mixture)
    taken = [one.rows for step in range(6, 10) for one in work.plan(step, mixture)]
    assert promised["all"].tolist() == sorted(np.concatenate(taken).tolist())
    assert work.rows(10, 20, 30, mixture) == {}  # past the end of the run


def test_rows_are_planned_only_for_rules_that_need_them():
    asked = []
    plans = SimpleNamespace(
        exhausted=lambda: set(),
        coming=lambda *words: asked.append("coming"),
        rows=lambda *words: asked.append(words) or {"all": np.arange(3)},
    )
    for rules, expected in (({"mixture": {"rule": "mometas"}}, []), (TINY["meta"]["rules"], [(8, 10, 14)])):
        meta = load_settings(MetaConfig, {"interval": 4, "lag": 2, "rules": rules})
        outer = Outer(meta, ["mlm", "guided"], None, Group())
        outer._coming(8, plans)
        assert [words[:3] for words in asked] == expected


@pytest.mark.parametrize(("lag", "step"), [(0, 7), (2, 11), (4, 8)])
def test_a_killed_online_run_goes_on_bit_for_bit(small_blocks, tmp_path, lag, step):
    config = config_with(meta={"lag": lag})
    run(config, small_blocks, tmp_path / "whole")
    killed = killed_at(step)
    with pytest.raises(KilledError):
        # Saved at 6 too: with lag 4 that is while the answer launched at 4 is under way.
        run(config, small_blocks, tmp_path / "killed", must_save=lambda at: at == 6 or killed(at))
    run(config, small_blocks, tmp_path / "killed")
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    reports = [line["meta"].get("guide", {}) for line in read_metrics(tmp_path / "whole") if "meta" in line]
    assert sum(report.get("rows", 0) for report in reports) == (14 - lag) * 8


def test_what_is_questioned_changes_what_is_trained(small_blocks, tmp_path):
    for name, changes in (("hardest", {}), ("few", {"meta": {"rules": {"guide": {"share": 0.02}}}})):
        run(config_with(**changes), small_blocks, tmp_path / name)
    first, second = (
        [line["loss"] for line in read_metrics(tmp_path / n) if "loss" in line] for n in ("hardest", "few")
    )
    assert first[:2] == second[:2]  # before the first answer
    assert first[2:] != second[2:]


def rank_main(group: Group, values: dict, blocks: str, folder: str) -> None:
    run_rank(RunConfig.model_validate(values), blocks, Path(folder), group)


@pytest.mark.slow
def test_two_ranks_take_over_the_same_guide(small_blocks, tmp_path):
    config = config_with()
    run(config, small_blocks, tmp_path / "one")
    (tmp_path / "two").mkdir()
    run_ranks(rank_main, config.model_dump(), small_blocks, str(tmp_path / "two"))
    one, two = ([line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert len(one) == len(two) == 14
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"meta": {"rules": {"guide": None}}}, "nothing says which tokens are hard"),
        ({"objectives": {"guided": None}}, "serves one objective 'guided' with guide=hard, and there are 0"),
        ({"objectives": {"guided": {"hard": {"threshold": 0.2}}}}, "meta.rules.guide.metric, .threshold and .share"),
        (only({"threshold": 0.1, "share": 0.1}), "threshold and share both say what is hard"),
        (only({"threshold": -1}), "thresholds are numbers from 0 up"),
        (only({"share": [0.1, 1.5]}), "a share is above 0 and at most 1"),
        (only({"metric": "lss"}), "metric"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes, says):
    with pytest.raises(UserError) as error:
        config_with(**changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
