"""Fixtures that several rooms share."""

import os
from pathlib import Path

import fsspec
import pytest
from flaky_storage import Flaky

# Tests are many small processes on few cores: threads would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data for development; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MLPT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data, and {folder} is not a folder (set MLPT_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def small_blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepared blocks of 32 tokens from the documentation corpus, vocabulary 512, for tests that train something."""
    from mlpt.data.prepare import DataConfig, prepare

    folder = tmp_path_factory.mktemp("blocks") / "docs"
    config = DataConfig(source="docs", max_bytes=600_000, vocab_size=512, block_size=32, dev_share=0.1, workers=1)
    prepare(config, str(folder))
    return str(folder)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch):
    """The storage behind `flaky://`, empty and healthy; tries follow each other quickly."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("mlpt.data.store._FIRST_DELAY_S", 0.001)
    Flaky.reset()
    yield Flaky
    Flaky.reset()
