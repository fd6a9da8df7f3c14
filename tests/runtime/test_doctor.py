"""`mlpt doctor` sees what is really there."""

import sys

import torch

from mlpt.runtime.doctor import examine


def by_subject() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in examine():
        found.setdefault(finding.subject, []).append(f"{finding.state}: {finding.text}")
    return found


def test_it_names_this_python_and_this_gpu_situation():
    found = by_subject()
    assert sys.version.split()[0] in found["python"][0]
    assert found["gpu"][0].startswith("ok" if torch.cuda.is_available() else "note: none")


def test_a_cache_that_cannot_be_written_is_bad(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert by_subject()["cache"][0].startswith("bad: ")


def test_a_temporary_folder_too_long_for_sockets_is_bad(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    assert by_subject()["RAY_TMPDIR"][0].startswith("bad: ")


def test_a_missing_compiler_is_noted(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert by_subject()["compiler"][0].startswith("note: there is no C++ compiler")
