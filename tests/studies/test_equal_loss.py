"""When a curve reaches a loss: by hand."""

import pytest

from mlpt.studies.equal_loss import reached
from mlpt.studies.values import Dev


def curve(*losses: float) -> list[Dev]:
    """Evaluations every 100 tokens and 10 seconds."""
    return [Dev(at, 100 * at, 10.0 * at, {"mlm": loss}) for at, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("losses", "loss", "there"),
    [
        ((6.0, 5.0, 4.0), 4.5, (250.0, 25.0)),
        ((6.0, 5.0, 4.0), 4.0, (300.0, 30.0)),
        ((6.0, 5.0, 4.0), 6.5, (100.0, 10.0)),  # below it at the first evaluation already
        ((6.0, 4.0, 5.0, 3.0), 4.5, (175.0, 17.5)),  # the first time, not the last
        ((6.0, 5.0, 4.0), 3.9, None),
        ((), 3.9, None),
    ],
)
def test_the_first_time_linearly_between_evaluations(losses, loss, there):
    assert reached(curve(*losses), "mlm", loss) == (pytest.approx(there) if there else None)
