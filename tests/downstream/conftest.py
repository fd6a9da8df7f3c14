"""Small configurations of fine-tuning, for the whole room."""

import pytest

from mlpt.downstream.config import FinetuneConfig
from mlpt.tasks import OwnTask, TaskSource


@pytest.fixture(scope="module")
def settings(tiny_model, tmp_path_factory):
    """A maker of small configurations; `mood` is a task learned in a few steps: which of two words is in the text."""
    folder = tmp_path_factory.mktemp("mood")
    words = ["the", "a", "of", "to", "file", "value"]
    texts = [" ".join([words[n % 6]] * (n % 4) + ["true" if n % 2 else "false", words[n // 6 % 6]]) for n in range(320)]
    lines = [f"{text},{'yes' if 'true' in text else 'no'}\n" for text in texts]
    (folder / "train.csv").write_text("text,label\n" + "".join(lines[:256]))
    (folder / "dev.csv").write_text("text,label\n" + "".join(lines[256:]))
    own = OwnTask(name="mood", train=str(folder / "train.csv"), dev=str(folder / "dev.csv"), first="text")

    def make(out, **changed):
        values = {
            "model": str(tiny_model),
            "tasks": ("mood",),
            "source": TaskSource(own=(own,)),
            "out": str(out),
            "seeds": (1,),
            "learning_rates": (3e-3,),
            "batch_size": 16,
            "max_steps": 20,
            "max_length": 32,
            "evaluate_every": 10,
        }
        return FinetuneConfig(**{**values, **changed})

    return make
