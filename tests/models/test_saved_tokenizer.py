"""Stock code that truncates gets what the model takes, from every folder that we write."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlpt.data.tokenizers import train_tokenizer
from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the old river runs under the red bridge " * 50


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("bert", "wordpiece"), ("roberta", "bpe"), ("electra", "wordpiece"), ("modernbert", "wordpiece")],
)
def test_stock_truncation_fits_the_model(architecture, kind, tmp_path):
    tokenizer = train_tokenizer(kind, lambda: iter([TEXT] * 20), 300)
    vocabulary = Vocabulary.of(tokenizer)
    encoder = build_encoder(
        ModelConfig(architecture=architecture, hidden_size=32, layers=1, heads=2), vocabulary, {}, 24, 0
    )
    encoder.save(tmp_path, tokenizer)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    inputs = stock(TEXT, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 24)  # the length of the blocks it was built for
    with torch.no_grad():
        assert AutoModelForMaskedLM.from_pretrained(tmp_path)(**inputs).logits.shape[1] == 24
    assert tokenizer.model_max_length > 10**9  # ours is as it was


def test_every_tokenizer_beside_a_model_is_saved_so():
    allowed = {"mlpt/models/saved_tokenizer.py", "mlpt/data/prepare.py"}  # a prepared folder holds no model
    writers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mlpt").rglob("*.py")
        if any(f"{name}.save_pretrained(" in path.read_text() for name in ("tokenizer", "saved"))
    }
    assert writers == allowed
