"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data for development; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MLPT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data, and {folder} is not a folder (set MLPT_SHARED_DATA)")
    return folder
