"""The tokenizer that is saved beside a model knows how long the model's inputs may be."""

import copy
import os
from typing import Any

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import positions_needed


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str], config: Any) -> None:
    """Write a transformers tokenizer beside the model of a Hugging Face `config`.

    Its `model_max_length` is the number of tokens that the model has positions for, so that a stock
    `tokenizer(text, truncation=True)` gives what the model takes. Models without a table of positions set no limit.
    """
    positions = getattr(config, "max_position_embeddings", None)
    saved = copy.deepcopy(tokenizer)
    if positions is not None and positions > 0:
        saved.model_max_length = positions - positions_needed(config.model_type, Vocabulary.of(tokenizer), 0)
    saved.save_pretrained(folder)
