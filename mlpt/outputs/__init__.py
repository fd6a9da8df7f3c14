"""Where commands leave their results: one rule for all, so that nothing of anybody is overwritten or mixed into.

A result goes into a new or an empty place; with `--overwrite` also into that of an earlier result of the same kind,
which stays until the new one is there.
"""

from mlpt.outputs.files import check_file, is_json_of, new_file, read_json, write_file, write_json
from mlpt.outputs.folders import (
    alone_in,
    check_folder,
    check_names,
    forget_replaced,
    growing_folder,
    is_there,
    new_folder,
    taken_folder,
)
from mlpt.outputs.kinds import BLOCKS, EXPORT, FINE_TUNING, MASKS, MOONS, MULTITASK, RUN, SCORES, STUDY, SWEEP, Kind
from mlpt.outputs.lease import PREFIX as LEASE
from mlpt.outputs.lease import leased
from mlpt.outputs.places import StrPath, absolute, expanded, named

__all__ = [
    "BLOCKS",
    "EXPORT",
    "FINE_TUNING",
    "LEASE",
    "MASKS",
    "MOONS",
    "MULTITASK",
    "RUN",
    "SCORES",
    "STUDY",
    "SWEEP",
    "Kind",
    "StrPath",
    "absolute",
    "alone_in",
    "check_file",
    "check_folder",
    "check_names",
    "expanded",
    "forget_replaced",
    "growing_folder",
    "is_json_of",
    "is_there",
    "leased",
    "named",
    "new_file",
    "new_folder",
    "read_json",
    "taken_folder",
    "write_file",
    "write_json",
]
