"""What a trial tells while it trains, and after a crash."""

import pytest
from ray import tune

from mlpt.config import RuntimeConfig
from mlpt.errors import UserError
from mlpt.tuning.plan import Plan
from mlpt.tuning.pretrain_trial import PretrainJob
from mlpt.tuning.space import Space

JOB = PretrainJob()
SPACE = Space(
    parameters={"train.optimizer.lr": tune.loguniform(1e-4, 1e-2)},
    metrics={"dev/mlm": "min"},
    tokens=1_000,
    trials=1,
    evaluations=2,
    base={
        "model": {"architecture": "bert", "hidden_size": 32, "layers": 1, "heads": 2},
        "objectives": {"atd": None, "dtd": None},
        "meta.rules.mixture": {"rule": "fixed", "weights": {"mlm": 1}},
        "train": {"batch_size": 4, "evaluate_batches": 1},
    },
)


class Told:
    """Keeps what a trial says; stands where Ray Tune listens."""

    def __init__(self, crashes=False):
        self.crashes = crashes
        self.evaluations, self.last = [], None

    def evaluated(self, step, values):
        self.evaluations.append((step, values))

    def wants_checkpoint(self, step):
        return False

    def finish(self, values):
        if self.crashes:
            raise RuntimeError("the power went out")
        self.last = values


def test_a_trial_that_crashed_after_its_last_step_reports_what_it_would_have(small_blocks, tmp_path):
    plan = Plan(SPACE, {}, tmp_path, RuntimeConfig(), small_blocks, 32, {"CPU": 1})
    config = JOB.config(SPACE, {"data": {"source": small_blocks}}, {"train.optimizer.lr": 1e-3}, 0)
    first, second = Told(crashes=True), Told()
    with pytest.raises(RuntimeError, match="power"):
        JOB.train(config, plan, tmp_path / "trial", first)
    JOB.train(config, plan, tmp_path / "trial", second)
    assert [step for step, _ in first.evaluations] == [4, 8]
    assert second.evaluations == []
    assert first.evaluations[-1][1].items() <= second.last.items()
    assert second.last["held_out/mlm"] > 0


def test_a_trial_reports_the_loss_of_its_target(small_blocks, tmp_path):
    overrides = {"data": {"source": small_blocks}, "objectives": {"mlm": {}, "clm": {}}}
    overrides |= {"meta": {"target": {"mlm": 3, "clm": 1}}}
    plan, told = Plan(SPACE, overrides, tmp_path, RuntimeConfig(), small_blocks, 32, {"CPU": 1}), Told()
    JOB.train(JOB.config(SPACE, overrides, {"train.optimizer.lr": 1e-3}, 0), plan, tmp_path / "trial", told)
    reports = [values for _, values in told.evaluations] + [told.last]
    assert len(reports) == 3
    for values in reports:
        assert values["dev/target"] == pytest.approx(0.75 * values["dev/mlm"] + 0.25 * values["dev/clm"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_arm", "meta.target names 'no_such_arm', which this run neither trains nor measures"),
        ({"texts": "no/such/file.txt"}, "there is no such file or folder"),
    ],
)
def test_a_target_that_there_is_not_shows_before_any_trial(small_blocks, tmp_path, target, message):
    config = JOB.config(SPACE, {"data": {"source": small_blocks}, "meta": {"target": target}}, {}, 0)
    with pytest.raises(UserError, match=message):
        JOB.data(config, tmp_path, print)
    config = JOB.config(SPACE, {"data": {"source": small_blocks}}, {}, 0)
    assert JOB.data(config, tmp_path, print) == (small_blocks, 32)


def test_a_domain_of_too_little_text_shows_before_any_trial(tmp_path):
    for name, lines in {"sea": 400, "few": 3}.items():
        text = "\n\n".join(f"{name} {line}: the ship sails over the long waves of a wide sea" for line in range(lines))
        (tmp_path / f"{name}.txt").write_text(text)
    sources = {name: str(tmp_path / f"{name}.txt") for name in ("sea", "few")}
    data = {"sources": sources, "mix": "learned", "vocab_size": 300, "block_size": 32}
    config = JOB.config(SPACE.changed(base={}), {"data": data}, {}, 0)
    with pytest.raises(UserError, match="'few'"):
        JOB.data(config, tmp_path, print)
