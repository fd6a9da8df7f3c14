"""Rows out of files that people have on disk, with every malformed row counted and the first few named."""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlpt.errors import UserError, one_line

T = TypeVar("T")
_FIELD = 1 << 26  # characters of a CSV file's field, in place of Python's 131,072; more is an unclosed quote
_NAMED = 3  # how many malformed rows a report names


class RowError(ValueError):
    """A row that can't be used; the reader counts it."""


@dataclass
class FileReport:
    """What was read from one file. `rows` counts all but blank lines and the header."""

    path: str
    rows: int = 0
    malformed: int = 0
    first: list[str] = field(default_factory=list)

    def bad(self, line: int, reason: str) -> None:
        """Count a malformed row, naming the first few."""
        self.malformed += 1
        if len(self.first) < _NAMED:
            self.first.append(f"{self.path}:{line}: {reason}")

    def summary(self) -> str:
        """One line: how many rows are malformed, and the first few."""
        more = "; ..." if self.malformed > len(self.first) else ""
        return f"{self.malformed} of {self.rows} rows of {self.path} are malformed ({'; '.join(self.first)}{more})"

    def check(self, max_share: float) -> None:
        """Raise `UserError` where more than `max_share` of the rows are malformed, or none is left."""
        if self.malformed > max_share * self.rows:
            limit = f"more than the allowed share of {max_share:g}"
            hint = (
                "repair them or raise max_malformed_share" if max_share else "a test set needs every row; repair them"
            )
            raise UserError(f"{self.summary()}, {limit}; {hint}")
        if self.malformed == self.rows:
            raise UserError(f"{self.path} has no rows; give a file with data")


def parse_rows(rows: Iterable[tuple[int, T]], parse: Callable[[T], Iterable[Any]], report: FileReport) -> Iterator[Any]:
    """What `parse` makes of each (line number, row). A row for which it raises `RowError`, or what Python raises for
    fields that are missing or of another type, gives nothing and counts."""
    for line, row in rows:
        report.rows += 1
        try:
            found = list(parse(row))
        except RowError as error:
            report.bad(line, str(error))
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
            report.bad(line, f"has fields of another form than it should ({what})")
        else:
            yield from found


def read_lines(path: Path, report: FileReport) -> Iterator[tuple[int, str]]:
    """Numbered non-blank lines, UTF-8, without BOM and line ends (LF or CRLF); `.gz` files are unpacked.

    Lines end at LF alone: texts hold characters such as U+2028 or U+0085, at which `str.splitlines` would cut.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file; copy or download it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        raw = raw.removesuffix(b"\r")
        if not raw.strip():
            continue
        try:
            yield number, raw.decode()
        except UnicodeDecodeError:
            report.rows += 1
            report.bad(number, "is not UTF-8")


def read_tsv(path: Path, report: FileReport, names: Sequence[str] | None = None) -> Iterator[tuple[int, "Row"]]:
    """Numbered rows of a tab-separated file in which quotes are plain characters (GLUE's are not CSV-quoted).

    The header names the columns unless `names` does (files without one).
    """
    lines = read_lines(path, report)
    if names is None:
        names = next(lines, (0, ""))[1].split("\t")
    for number, line in lines:
        yield number, Row(names, line.split("\t"))


class Row:
    """A row of a table by column name; complains where the number of fields isn't that of the columns."""

    def __init__(self, names: Sequence[str], fields: Sequence[str]) -> None:
        self._names, self._fields = names, fields

    def check(self) -> dict[str, str]:
        """Column name to text; raises `RowError` for a row that is too short or too long."""
        if len(self._fields) != len(self._names):
            raise RowError(f"has {len(self._fields)} columns instead of {len(self._names)}")
        return dict(zip(self._names, self._fields, strict=True))


def read_jsonl(path: Path, report: FileReport) -> Iterator[tuple[int, dict]]:
    """Numbered JSON objects, one a line."""
    for number, line in read_lines(path, report):
        try:
            record = _of_json(line)
        except (ValueError, RecursionError) as error:
            record = error
        if isinstance(record, dict):
            yield number, record
        else:
            report.rows += 1
            report.bad(number, "is not a JSON object")


def _of_json(text: str) -> Any:
    """What a JSON text says, with a question mark for each half of a surrogate pair: tokenizers refuse those."""
    found = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return found


def read_json(path: Path) -> Any:
    """A whole JSON document."""
    try:
        return _of_json(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}; download it again") from error


TABLES = (".csv", ".tsv", ".jsonl", ".parquet")  # what `read_table` reads


def read_table(path: Path, report: FileReport) -> Iterator[tuple[int, dict]]:
    """Numbered rows of a CSV (quoted, with a header), TSV (literal quotes), JSONL or Parquet file of the user's own."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from read_jsonl(path, report)
    elif suffix == ".parquet":
        yield from _read_parquet(path)
    elif suffix == ".csv":
        yield from _read_csv(path, report)
    elif suffix == ".tsv":
        for number, row in read_tsv(path, report):
            try:
                yield number, row.check()
            except RowError as error:
                report.rows += 1
                report.bad(number, str(error))
    else:
        raise UserError(f"cannot tell the format of {path}; name it {', '.join(TABLES[:-1])} or {TABLES[-1]}")


def read_columns(path: Path, report: FileReport, needed: Sequence[str]) -> list[tuple[int, dict]]:
    """The rows of `read_table`. Raises `UserError` where the first lacks one of the columns `needed`."""
    rows = list(read_table(path, report))
    if rows and (missing := [name for name in needed if name not in rows[0][1]]):
        known = ", ".join(rows[0][1])
        raise UserError(f"{path} has no column '{missing[0]}'; its columns: {known}; name the right one")
    return rows


def _read_csv(path: Path, report: FileReport) -> Iterator[tuple[int, dict]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it") from error
    names: list[str] | None = None
    for number, fields in _csv_rows(text, path, report):
        if names is None:
            names = fields
        elif len(fields) == len(names):
            yield number, dict(zip(names, fields, strict=True))
        elif fields:
            report.rows += 1
            report.bad(number, f"has {len(fields)} columns instead of {len(names)}")


def _csv_rows(text: str, path: Path, report: FileReport) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows of fields. A quote that is not closed as it must be is a malformed row where it takes one line;
    where it takes more the rows in these are lost, and it is an error."""
    csv.field_size_limit(_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > begins or "limit" in str(error):
                raise UserError(
                    f"{path}:{begins}: has a quote that is not closed, or not before a comma or the line's end, up to "
                    f"line {reader.line_num} ({error}); close it, and write quotes inside of a quoted text twice"
                ) from error
            report.rows += 1
            report.bad(begins, f"has a quote inside of a quoted text that is not written twice ({error})")
        else:
            yield reader.line_num, fields


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as Parquet: {one_line(error)}") from error
    yield from enumerate(rows, start=1)


def text_of(record: Mapping[str, Any], name: str) -> str:
    """A text field that must be there and not be empty."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"has no text in '{name}'")
    return value


def number_of(record: Mapping[str, Any], name: str) -> int:
    """An integer field that must be there (text from a table, or a JSON number)."""
    value = record.get(name)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(f"has {value!r} instead of an integer in '{name}'") from error


def list_of(record: Mapping[str, Any], name: str) -> list:
    """A list that must be there."""
    value = record.get(name)
    if not isinstance(value, list):
        raise RowError(f"has no list in '{name}'")
    return value


def mapping_of(record: Mapping[str, Any], name: str) -> dict:
    """An object that must be there."""
    value = record.get(name)
    if not isinstance(value, dict):
        raise RowError(f"has no object in '{name}'")
    return value


def label_of(text: str, labels: Sequence[str]) -> int:
    """The id of a label name; an unknown name is a malformed row, never some label."""
    try:
        return labels.index(text)
    except ValueError as error:
        raise RowError(f"has label {text!r}, expected one of {', '.join(labels)}") from error


def name_of(value: Any) -> str:
    """A label's name as text: 1 and 1.0 (how a table stores integers beside gaps) are one name; "" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def score_of(value: Any, low: float = float("-inf"), high: float = float("inf")) -> float:
    """A finite float within bounds."""
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(f"has score {value!r}, expected a number") from error
    if not low <= score <= high or score in (float("inf"), float("-inf")):
        raise RowError(f"has score {value!r}, expected {low:g} to {high:g}")
    return score
