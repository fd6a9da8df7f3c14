"""Minimal pairs: an acceptable and an unacceptable sentence that differ in one thing, by paradigm.

BLiMP (Warstadt et al., 2020) and Zorro (Huebner et al., 2021) in the layouts that people have: the original folders,
one file for all, or the hub. Rows of one's own need `sentence_good` and `sentence_bad`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpt.errors import UserError
from mlpt.outputs import expanded
from mlpt.storage.files import one_line
from mlpt.tasks.reading import FileReport, parse_rows, read_jsonl, read_lines, text_of

HUB = "hub:"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
_EXPECTED = "a .jsonl or .jsonl.gz file, a folder of them, a folder of Zorro's .txt files, or hub:nyu-mll/blimp"


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """One pair. `phenomenon` and `field` (BLiMP's broadest division) are "" where the source doesn't tell them."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str = ""
    field: str = ""


def read_pairs(source: str) -> list[MinimalPair]:
    """All pairs of a file, a folder or `hub:NAME[:configuration]`, in a fixed order.

    Raises `UserError` for a source that isn't there, one without pairs, and any malformed row, by file and line.
    """
    if source.startswith(HUB):
        return list(_read_hub(source))
    path = expanded(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
        if not files:
            raise UserError(f"{path} holds no minimal pairs; give {_EXPECTED}")
    elif path.name.endswith(_SUFFIXES):
        files = [path]
    else:
        raise UserError(f"there are no minimal pairs in '{source}'; give {_EXPECTED}")
    return [pair for file in files for pair in _read_file(file)]


def _read_file(path: Path) -> list[MinimalPair]:
    report = FileReport(str(path))
    if path.suffix == ".txt":
        pairs = list(_alternating_lines(path, report))
    else:
        name = path.name.removesuffix(".gz").removesuffix(".jsonl")
        pairs = list(parse_rows(read_jsonl(path, report), _parser(name), report))
    report.check(0.0)
    return pairs


def _alternating_lines(path: Path, report: FileReport) -> Iterator[MinimalPair]:
    """Zorro's original layout: each odd line is ungrammatical, the next one its grammatical counterpart."""
    phenomenon = _phenomenon(path.stem)
    lines = read_lines(path, report)
    for number, bad in lines:
        report.rows += 1
        after, good = next(lines, (0, ""))
        if after == number + 1:
            yield MinimalPair(good, bad, path.stem, phenomenon)
        else:
            report.bad(number, "has no grammatical sentence on the line after it")


def _pair(row: Mapping[str, Any], name: str) -> MinimalPair:
    """`name`: the paradigm of a row that names none."""
    paradigm = str(row.get("UID") or name)
    phenomenon = str(row.get("linguistics_term") or _phenomenon(paradigm))
    # BLiMP's files spell one of its fields in two ways.
    field = str(row.get("field") or "").replace("/", "_")
    return MinimalPair(text_of(row, "sentence_good"), text_of(row, "sentence_bad"), paradigm, phenomenon, field)


def _phenomenon(paradigm: str) -> str:
    """Zorro names its paradigms `phenomenon-paradigm`."""
    return paradigm.rpartition("-")[0]


def _read_hub(source: str) -> Iterator[MinimalPair]:
    """One configuration a paradigm, as `nyu-mll/blimp` has them; without loading scripts."""
    import datasets  # importing it takes a second that other sources need not wait

    name, _, configuration = source.removeprefix(HUB).partition(":")
    if not name:
        raise UserError(f"'{source}' names no dataset; write hub:nyu-mll/blimp")
    try:
        configurations = [configuration] if configuration else datasets.get_dataset_config_names(name)
        tables = {one: datasets.load_dataset(name, one) for one in configurations}
    except Exception as error:  # datasets raises many kinds: no network, no such dataset or configuration, no access
        raise UserError(
            f"cannot get {name} from the hub ({one_line(error)[:200]}); go online once, or give the original files"
        ) from error
    for one, splits in tables.items():
        for split, table in splits.items():
            report = FileReport(f"{HUB}{name}/{one}/{split}")
            yield from parse_rows(enumerate(table, start=1), _parser(one), report)
            report.check(0.0)


def _parser(name: str) -> Callable[[Mapping[str, Any]], Iterable[MinimalPair]]:
    def parse(row: Mapping[str, Any]) -> Iterable[MinimalPair]:
        yield _pair(row, name)

    return parse
