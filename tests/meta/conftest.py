"""Two moons as text, prepared once for the tests of the teacher's rules."""

import pytest
from teacher_runs import LENGTH

from mlpt.data.config import DataConfig
from mlpt.data.prepare import prepare
from mlpt.data.task_tokenizer import train_task_tokenizer
from mlpt.data.two_moons import moons


@pytest.fixture(scope="session")
def moons_blocks(tmp_path_factory):
    """Two hundred texts of two moons, in which some end early, and a tokenizer with task tokens."""
    folder = tmp_path_factory.mktemp("moons")
    points, _ = moons(42, 3200)
    groups = points.reshape(-1, 16, 2)
    texts = [
        " ".join(str(one) for point in group[: 16 - number % 3] for one in point)
        for number, group in enumerate(groups.tolist())
    ]
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    numbers = [*map(str, range(64)), " ".join(str(number % 64) for number in range(128))]
    train_task_tokenizer(lambda: iter([*texts, *numbers]), 512, 1).save_pretrained(folder / "tokenizer")
    config = DataConfig(
        source=str(folder / "texts.txt"),
        documents="lines",
        tokenizer=str(folder / "tokenizer"),
        packing="windows",
        block_size=LENGTH,
        dev_share=0.2,
        test_share=0.1,
        workers=1,
    )
    prepare(config, str(folder / "blocks"))
    return str(folder / "blocks")
