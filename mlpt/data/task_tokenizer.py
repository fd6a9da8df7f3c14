"""MetaLMO's tokenizer (Shen, 2021): byte-level BPE whose first ids are padding, mask, separator and 30 task tokens.

A sequence opens with a task token, which says what is to be made of it. `[CLS0]` stands for plain text; the tokenizer
puts it in front, and a task puts its own in its place (`mlpt.tasks.text_to_text`).
"""

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mlpt.data.tokenizers import Texts
from mlpt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, MASK, SEP = 0, 1, 2
TASK_TOKENS = 30


def task_token(number: int) -> int:
    """The id of `[CLS<number>]`."""
    if not 0 <= number < TASK_TOKENS:
        raise ValueError(f"there are {TASK_TOKENS} task tokens, from 0; {number} is none of them")
    return SEP + 1 + number


def train_task_tokenizer(texts: Texts, vocab_size: int, min_frequency: int = 2) -> "PreTrainedTokenizerFast":
    """Train it on `texts`: case and spaces are kept, and every text can be written.

    min_frequency  how often a pair of tokens must occur to become one.
    The same texts give the same ids every time. Raises UserError when `vocab_size` has no room for the bytes.
    """
    special = ["[PAD]", "[MASK]", "[SEP]", *(f"[CLS{number}]" for number in range(TASK_TOKENS))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if len(special) + len(alphabet) >= vocab_size:
        raise UserError(
            f"vocab_size {vocab_size} has no room for the {len(alphabet)} bytes and {len(special)} special tokens; "
            "raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS0]", task_token(0)))
    return _wrap(tokenizer, special)


def _wrap(tokenizer: Tokenizer, special: list[str]) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast  # slow to import

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        mask_token="[MASK]",
        sep_token="[SEP]",
        cls_token="[CLS0]",
        unk_token="[MASK]",  # never needed: every byte is a token
        extra_special_tokens=special[SEP + 2 :],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
