"""One look-ahead cut up among replicas of the learner: each takes its rows of the batch, and gradients are averaged.

What replica i of n finds is the hypergradient of a look-ahead of its own on 1/n of the rows, meta-train and meta-dev,
that the one draw of the update gave; n disjoint parts. The average is a sum in the order of the replicas, divided by n,
whoever computed them and whenever they were ready.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mlpt.storage.state import State

Gradients = dict[str, dict[str, Tensor]]  # by part of the policy, by the name of a leaf
Others = Callable[[], Sequence[State]]  # what the replicas after the first found, in their order

DEV_LOSS = "dev_loss"  # in a report: held-out losses after the look-ahead, by arm
_GRADIENTS, _TOLD = "gradients", "told"


def found_state(gradients: Mapping[str, Mapping[str, Tensor]], told: Mapping[str, Any]) -> State:
    """What a replica found, as it travels: the gradients, and its report (plain JSON values)."""
    leaves = State.join({part: State({}, leaves) for part, leaves in gradients.items()})
    return State.join({_GRADIENTS: leaves, _TOLD: State(dict(told))})


def averaged(found: Sequence[State]) -> tuple[Gradients, dict[str, Any]]:
    """The mean of what the replicas found: gradients by part and leaf, on the first one's device; and the first one's
    report, with the mean of their held-out losses."""
    first = found[0]
    gradients: Gradients = {part: {} for part in first.part(_GRADIENTS).values}
    for part, leaves in gradients.items():
        for name, own in first.part(_GRADIENTS).part(part).tensors.items():
            whole = own
            for other in found[1:]:
                whole = whole + other.part(_GRADIENTS).part(part).tensors[name].to(own)
            leaves[name] = whole / len(found) if len(found) > 1 else own
    told = dict(first.values[_TOLD])
    if DEV_LOSS in told:
        told[DEV_LOSS] = {
            name: sum(one.values[_TOLD][DEV_LOSS][name] for one in found) / len(found) for name in told[DEV_LOSS]
        }
    return gradients, told
