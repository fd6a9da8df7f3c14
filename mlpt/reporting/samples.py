"""The sample texts that a run has kept, as plain values: what objectives made of them, and how hard each token was."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FOLDER = "samples"


@dataclass(frozen=True)
class Sample:
    """Texts at one step.

    objectives  by name: `kind` (masking, guide or teacher), `split`, and `rows`, each of which has, token by token, the
                `text`, what was `made` of it, `kinds` (= kept, m masked, r another token), the token `wanted` (None:
                not asked for), `losses` in nats (None: none), and maybe `hard` (0 or 1).
    hardness    held-out rows of `text` and `losses`, every ordinary token masked once.
    """

    step: int
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hardness: list[Mapping[str, Any]] = field(default_factory=list)


def read_sample(content: bytes | None) -> Sample | None:
    """One file of the folder; None where it is damaged or of another version."""
    try:
        said = json.loads(content or b"null")
        return Sample(int(said["step"]), dict(said["objectives"]), list(said["hardness"]))
    except (ValueError, TypeError, KeyError):
        return None
