"""What a comparison found, in a sentence for people."""

from mlpt.studies.declaration import Comparison
from mlpt.studies.inference import LEVEL, Paired
from mlpt.studies.measurements import Measurement


def verdict(comparison: Comparison, measurement: Measurement, found: Paired | None, p: float | None) -> str:
    """better, worse, equal, or not shown, with the gain and its 95 % interval. `p`: corrected over all comparisons.

    The interval is that of the mean difference itself, without correction.
    """
    if found is None:
        return "not shown: no seed has both values"
    gain, margin = found.gain, comparison.margin
    if gain.low is None or gain.high is None:
        return f"not shown: one seed alone (difference {measurement.show(gain.mean, signed=True)}) has no interval"
    by = measurement.show(abs(gain.mean))
    interval = f"95 % interval of the gain {measurement.show(gain.low, True)} to {measurement.show(gain.high, True)}"
    if p is None:
        return f"not shown: every seed has the same difference, {measurement.show(gain.mean, signed=True)}"
    shown, within = p <= LEVEL, measurement.show(abs(margin))
    if comparison.expect == "equal":
        difference = interval.replace("gain", "difference")
        return (
            f"equal to within {within} ({difference})" if shown else f"not shown to be equal to {within} ({difference})"
        )
    if shown and gain.mean > margin:
        if margin < 0:
            return f"no worse by more than {within} ({interval})"
        return f"better by {by} ({interval})"
    if shown and gain.mean < min(margin, 0.0):
        return f"worse by {by} ({interval})"
    return f"not shown ({interval})"
