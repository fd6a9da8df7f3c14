"""The results of a study that never was: two finished cells and one that waits."""

from scipy import stats

LOSSES = {"learned": [5.1, 5.3, 5.0], "uniform": [5.5, 5.6, 5.2]}
GAINS = [0.4, 0.3, 0.2]  # uniform less learned, seed by seed


def spread(values: list[float]) -> dict:
    low, high = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), stats.sem(values))
    return {"n": len(values), "mean": sum(values) / len(values), "sd": stats.tstd(values), "low": low, "high": high}


def results(learned: list[float] = LOSSES["learned"]) -> dict:
    def cell(values: list[float]) -> dict:
        runs = {str(at): {"state": "done", "values": {"mlm": one}, "why": {}} for at, one in enumerate(values)}
        return {"measurements": {"mlm": spread(values)}, "runs": runs, "costs": {}}

    cells = {"learned": cell(learned), "uniform": cell(LOSSES["uniform"])}
    cells["late <b>"] = {"measurements": {"mlm": None}, "runs": {"0": {"state": "waiting", "why": {}}}, "costs": {}}
    one = {
        "compare": ["learned", "uniform"],
        "measurement": "mlm",
        "expect": "lower",
        "margin": 0.0,
        "seeds": [0, 1, 2],
    }
    found = {**one, "gain": spread(GAINS), "p_corrected": 0.037, "verdict": "better by 0.300 (an interval)"}
    nothing = {**one, "compare": ["late <b>", "uniform"], "seeds": [], "gain": None, "p_corrected": None}
    nothing["verdict"] = "not shown: no seed has both values"
    return {
        **{"name": "mixes", "question": "Is a learned mix better?", "decision": "Then it becomes the default."},
        **{"seeds": [0, 1, 2], "cells": cells, "comparisons": [found, nothing]},
    }
