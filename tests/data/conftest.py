"""Small corpora and a cache directory of the test's own."""

import json
from pathlib import Path

import pytest
from data_texts import sentences


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """400 documents, blank lines between them."""
    path = tmp_path / "input" / "river.txt"
    path.parent.mkdir()
    path.write_text("\n\n".join(sentences(400)) + "\n")
    return path


@pytest.fixture
def two_domains(tmp_path: Path) -> Path:
    """400 documents of JSON lines, of the domains `hills` and `rivers` in turn."""
    path = tmp_path / "input" / "both.jsonl"
    path.parent.mkdir()
    with path.open("w") as file:
        for number, text in enumerate(sentences(400)):
            file.write(json.dumps({"text": text, "domain": ("hills", "rivers")[number % 2]}) + "\n")
    return path
