"""Labelled tasks that judge a teacher, looked up before training; the meta-learner reads them at its first update."""

from mlpt.config import RunConfig
from mlpt.meta.judges import labelled_rows
from mlpt.tasks.episodes import MLM


def check_judges(config: RunConfig) -> None:
    """Raise `UserError` for a task of `meta.rules.teacher.tasks` that has no labelled rows.

    On a cluster the files may lie where this machine cannot read them; there the first update says so.
    """
    if config.runtime.num_workers != 0 and config.runtime.address != "local":
        return
    rule = config.meta.rules.get("teacher")
    for name in getattr(rule, "tasks", ()):
        if name != MLM:
            labelled_rows(name, rule.source)  # type: ignore[union-attr]
