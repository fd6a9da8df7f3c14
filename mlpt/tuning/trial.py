"""One trial of a sweep: one point with one seed, which reports to Tune after each evaluation."""

import time
from collections.abc import Mapping
from typing import Any

from ray import tune

from mlpt.errors import UserError
from mlpt.storage.files import check_room
from mlpt.tuning.multitask_trial import MultitaskJob
from mlpt.tuning.plan import Job, Plan
from mlpt.tuning.pretrain_trial import PretrainJob
from mlpt.tuning.reporter import Reporter, report_again, report_failure
from mlpt.tuning.space import Space, as_settings

JOBS: dict[str, Job] = {"pretrain": PretrainJob(), "multitask": MultitaskJob()}


def job_of(space: Space) -> Job:
    """The kind of the space's trials."""
    return JOBS[space.job]


def fitted_space(space: Space, overrides: Mapping[str, Any]) -> Space:
    """What the space becomes for runs with these nested settings. Raises `UserError` for settings that fit no run."""

    def trial_of(space: Space) -> Any:
        return job_of(space).config(space.changed(settings=as_settings), overrides, {}, 0)

    return space if space.fitted is None else space.fitted(space, trial_of)


def run_trial(config: dict[str, Any], plan: Plan) -> None:
    """Tune's trainable. `config` holds the `point` and the `seed`.

    A run that cannot succeed (`UserError`) is reported with the worst metrics and its reason; crashes Tune retries, and
    runs that found no room to write in are tried again when the sweep goes on.
    """
    begun, space, job = time.perf_counter(), plan.space, job_of(plan.space)
    run_dir = plan.folder / "trials" / tune.get_context().get_trial_id()
    if report_again(run_dir):
        return
    try:
        resolved = job.config(space, plan.overrides, config["point"], config["seed"])
        job.train(resolved, plan, run_dir, Reporter(plan, run_dir, job.budget(resolved, space, plan.length)))
    except UserError as error:
        check_room(plan.folder)  # a full disk is no fault of the point's
        report_failure(plan, run_dir, str(error), time.perf_counter() - begun)
