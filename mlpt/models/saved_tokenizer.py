"""The tokenizer that is saved beside a model knows how long the model's inputs may be."""

import copy
import os
from typing import Any

from mlpt.models.config import room_for_tokens


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str], config: Any) -> None:
    """Write a transformers tokenizer beside the model of a Hugging Face `config`.

    Its `model_max_length` is the number of tokens that the model has positions for, so that a stock
    `tokenizer(text, truncation=True)` gives what the model takes. Models without a table of positions set no limit.
    A tokenizer may lack special tokens; its padding token is then that of the model.
    """
    pad = config.pad_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    room = None if pad is None else room_for_tokens(config, pad)
    saved = copy.deepcopy(tokenizer)
    if room is not None:
        saved.model_max_length = room
    saved.save_pretrained(folder)
