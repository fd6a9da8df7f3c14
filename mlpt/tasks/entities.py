"""Entities in a sentence's labels (B-PER, I-PER, O), by the rules of CoNLL's scorer (Tjong Kim Sang, De Meulder, 2003).

IOB1, IOB2 and IOBES are read alike: I- begins an entity where none of its type goes on, E- and S- end one.
"""

import re
from collections.abc import Sequence

Entity = tuple[str, int, int]  # type, first word, last word (exclusive)

_LABEL = re.compile(r"[BIES]-.+", re.DOTALL)


def are_entity_labels(labels: Sequence[str]) -> bool:
    """Whether a task's label names mark entities: B-, I-, E- or S- with a type, and O."""
    return all(label == "O" or _LABEL.fullmatch(label) for label in labels) and any(label != "O" for label in labels)


def entities(labels: Sequence[str]) -> set[Entity]:
    """The entities that the labels of a sentence's words mark."""
    found: set[Entity] = set()
    begun, kind, ended = -1, "", False
    for place, label in enumerate([*labels, "O"]):
        prefix, _, named = label.partition("-")
        goes_on = begun >= 0 and prefix in ("I", "E") and named == kind and not ended
        if begun >= 0 and not goes_on:
            found.add((kind, begun, place))
            begun = -1
        if begun < 0 and label != "O":
            begun, kind = place, named
        ended = prefix in ("E", "S")
    return found
