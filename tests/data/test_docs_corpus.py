"""The embedded corpus: docstrings of what is installed, read and never imported."""

import json
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from mlpt.data import docs_corpus


def test_docstrings_of_modules_classes_and_functions_are_found_in_order() -> None:
    source = """
'Module.'
if True:
    class A:
        'Class.'
        def f(self):
            '''One.

            Two.
            '''
            return "no doc"
try:
    pass
except E:
    async def g(): "Last."
"""
    assert list(docs_corpus.docstrings(source)) == ["Module.", "Class.", "One.\n\nTwo.", "Last."]


def test_the_capped_corpus_is_fair_free_of_repeats_and_the_same_twice() -> None:
    first = list(docs_corpus.documents(150_000))
    assert first == list(docs_corpus.documents(150_000))
    sizes = Counter({one["domain"]: 0 for one in first})
    for one in first:
        sizes[one["domain"]] += len(one["text"])
    assert len(sizes) > 20
    assert {"python", "torch", "numpy"} <= sizes.keys()
    assert 100_000 < sum(sizes.values()) <= 150_000
    assert len({one["text"] for one in first}) == len(first)


def test_the_corpus_is_cached_and_holds_what_is_documented() -> None:
    path = docs_corpus.collect(100_000)
    before = path.stat().st_mtime_ns
    assert docs_corpus.collect(100_000) == path
    assert path.stat().st_mtime_ns == before
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(record) == {"text", "domain", "module"} for record in records)


def test_importing_a_package_that_brings_others_along_makes_no_other_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = docs_corpus._environment()
    folder = tmp_path / "vendored-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vendored\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)  # what importing ray or setuptools does
    assert metadata.version("vendored") == "1.0"
    assert docs_corpus._environment() == before


@pytest.mark.parametrize("content", [b"def (:", b"\xff\xfe'''" + b"x" * 50, b'"""doc"""' + b"\0", b"'''" + b"(" * 300])
def test_a_file_that_is_no_python_gives_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(content)
    assert docs_corpus._docstrings_of(path) == []
    assert docs_corpus._docstrings_of(tmp_path / "absent.py") == []


def test_nothing_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('"""' + "Documentation. " * 20 + '"""\nraise SystemExit("imported")\n')
    assert docs_corpus._docstrings_of(path) == [("Documentation. " * 20).strip()]
