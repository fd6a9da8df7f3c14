"""A model under measurement: a saved encoder with its tokenizer, on the device that scores it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from mlpt.data.vocabulary import Vocabulary
from mlpt.downstream.loading import apply_masks, load_tokenizer, masks_of
from mlpt.errors import UserError
from mlpt.models.config import room_for_tokens
from mlpt.models.encoder import Encoder, load_encoder
from mlpt.models.quiet import quiet
from mlpt.training.group import default_device

Precision = Literal["auto", "float32", "bf16"]
_NO_LIMIT = 10**9  # tokenizers that know no limit say a number beyond this one


@dataclass(frozen=True)
class Subject:
    """What suites measure.

    room   tokens that the model takes at most, special ones included; None: no limit.
    masks  the mask file whose pruned weights were set to zero; None: dense.
    """

    name: str
    encoder: Encoder
    tokenizer: Any
    vocabulary: Vocabulary
    device: torch.device
    room: int | None
    masks: str | None = None

    @classmethod
    def of(cls, name: str, encoder: Encoder, tokenizer: Any, device: torch.device | None = None) -> "Subject":
        """The encoder in evaluation mode on `device` (default: the GPU if there is one)."""
        device = device or default_device()
        vocabulary = Vocabulary.of(tokenizer)
        if encoder.config.vocab_size < vocabulary.size:
            raise UserError(
                f"the model {name} has {encoder.config.vocab_size} tokens and its tokenizer {vocabulary.size}: "
                "use the tokenizer that came with the model"
            )
        room = min(room_for_tokens(encoder.config, vocabulary.pad) or _NO_LIMIT, tokenizer.model_max_length)
        return cls(name, encoder.to(device).eval(), tokenizer, vocabulary, device, room if room < _NO_LIMIT else None)

    def resolved(self, precision: Precision) -> Precision:
        """What "auto" means here: bf16 on a GPU and on processors that multiply it in hardware, float32 on others."""
        if precision != "auto":
            return precision
        able = torch.cpu.get_capabilities()
        fast = self.device.type == "cuda" or able.get("amx_bf16", False) or able.get("avx512_bf16", False)
        return "bf16" if fast else "float32"

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """The context of a forward pass: bfloat16 matrix products for bf16."""
        wanted = self.resolved(precision) == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def load_subject(
    folder: str, masks: str | None = None, dense: bool = False, name: str | None = None, needs_head: bool = True
) -> Subject:
    """The model of a folder or hub name, called `name`; weights that its masks prune are zero.

    masks  a mask file; None: those beside the model's weights, if there are any and it is not to be `dense`.
    Raises `UserError` where there is no masked language model with a tokenizer (only with `needs_head` must its
    language-modelling head be there), or the masks are of another model.
    """
    in_force = masks_of(folder, masks, dense)
    with quiet():
        encoder = load_encoder(folder, {}, complete=needs_head)
    if in_force is not None:
        apply_masks(in_force, encoder)
    subject = Subject.of(name or folder, encoder, load_tokenizer(folder))
    return replace(subject, masks=in_force)
