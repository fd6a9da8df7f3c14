"""A tiny saved model with a word vocabulary, for the whole room."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from mlpt.downstream.config import FinetuneConfig
from mlpt.tasks import OwnTask, TaskSource, load_task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A BERT of 2 layers x 32 with its tokenizer: letters and the commonest words of the documentation."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    counts: dict[str, int] = {}
    for row in load_task("docs_package", TaskSource()).splits["train"]:
        for word in row.first.lower().split():
            if word.isalpha():
                counts[word] = counts.get(word, 0) + 1
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = sorted(set(counts) - set(letters), key=lambda word: (-counts[word], word))[:300]
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    tokenizer = BertTokenizerFast({word: number for number, word in enumerate(vocabulary)}, do_lower_case=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
        )
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
            "eval_steps": 10,
        }
        return FinetuneConfig(**{**values, **changed})

    return make
