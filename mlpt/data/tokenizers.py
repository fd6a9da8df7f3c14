"""Training and loading tokenizers: WordPiece as BERT uses it, byte-level BPE as RoBERTa uses it (or MetaLMO, with task
tokens), or a stock folder."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mlpt.data.reach import hub_lookup, is_path
from mlpt.errors import UserError
from mlpt.outputs import expanded
from mlpt.storage.files import one_line, readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAINED = ("wordpiece", "bpe", "task_bpe")  # names that mean: train one
_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ROBERTA = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
_FILES = (  # of which a folder with a tokenizer has one
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_NEEDED = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")

Texts = Callable[[], Iterator[str]]  # each call starts the same texts anew


def train_tokenizer(kind: str, texts: Texts, vocab_size: int, lowercase: bool = True) -> "PreTrainedTokenizerFast":
    """Train "wordpiece" (`lowercase` folds case and accents), "bpe" (byte-level, keeps case) or "task_bpe" on `texts`.

    The same texts give the same ids every time. Raises UserError when `vocab_size` has no room for the letters.
    """
    if kind == "wordpiece":
        return _wrap(_train_wordpiece(texts, vocab_size, lowercase), _BERT)
    if kind == "task_bpe":
        from mlpt.data.task_tokenizer import train_task_tokenizer  # it stands on this module

        return train_task_tokenizer(texts, vocab_size)
    return _wrap(_train_bpe(texts, vocab_size), _ROBERTA)


def load_tokenizer(path_or_name: str) -> "PreTrainedTokenizerFast":
    """Load a tokenizer with BERT-like special tokens.

    Takes a tokenizer's folder, a prepared folder's `tokenizer`, a bare `vocab.txt` (BERT, lower-casing unless its
    words have capitals), a folder of `vocab.json` and `merges.txt` (RoBERTa), or a hub name.

    Raises UserError when nothing can be loaded, or when a special token that packing or masking needs is missing.
    """
    path = expanded(path_or_name)
    if path.is_file() and path.name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        path = path.parent
    complete = (path / "tokenizer.json").exists() or (path / "tokenizer_config.json").exists()
    with readable_errors(path_or_name, "read"):
        if path.is_file():
            return _wrap(_bare_wordpiece(path), _BERT)
        if path.is_dir() and not complete and (path / "vocab.txt").exists():
            return _wrap(_bare_wordpiece(path / "vocab.txt"), _BERT)
        if path.is_dir() and not complete and (path / "merges.txt").exists():
            return _wrap(_bare_bpe(path), _ROBERTA)
        return _stock(path_or_name, path)


def has_tokenizer(model: str) -> bool:
    """True for a model's folder that holds a tokenizer, and for a hub name, which has one.

    A path that is not there has none: whoever loads the model says so.
    """
    path = expanded(model)
    return any((path / name).is_file() for name in _FILES) if path.exists() else not is_path(model)


def knows_words(tokenizer: Any) -> bool:
    """False for what transformers makes where there are no files of a vocabulary: special tokens alone."""
    return not set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids)


def vocabulary_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """A hash of every token with its id and of the special tokens: equal where ids mean the same."""
    special = [getattr(tokenizer, name) for name in _NEEDED]
    pairs = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([special, pairs]).encode()).hexdigest()


def encoder_json(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The tokenizer for workers that need no transformers (`tokenizers.Tokenizer.from_str`): never pads or cuts."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()


def _train_wordpiece(texts: Texts, vocab_size: int, lowercase: bool) -> Tokenizer:
    special = list(dict.fromkeys(_BERT.values()))
    first = _wordpiece({}, lowercase)
    first.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=0, show_progress=False))
    letters = sorted(first.get_vocab())
    if len(special) + len(letters) >= vocab_size:
        raise UserError(
            f"vocab_size {vocab_size} has no room: the text has {len(letters)} letters (with their ## forms); raise it"
        )
    # The trainer numbers "##x" tokens in hash order, which differs between runs, and breaks ties of merges by those
    # numbers. Handing them over, sorted, as special tokens fixes both.
    trained = _wordpiece({}, lowercase)
    trained.train_from_iterator(
        texts(),
        trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + letters, show_progress=False),
    )
    return _wordpiece(trained.get_vocab(), lowercase)


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _train_bpe(texts: Texts, vocab_size: int) -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if len(special) + len(alphabet) >= vocab_size:
        raise UserError(
            f"vocab_size {vocab_size} has no room for the {len(alphabet)} bytes and 5 special tokens; raise it"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bare_wordpiece(path: Path) -> Tokenizer:
    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a token may hold other line ends
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocabulary (one UTF-8 token a line); check the path") from error
    vocabulary = {word.rstrip("\r"): number for number, word in enumerate(words)}
    missing = [token for token in _BERT.values() if token not in vocabulary]
    if missing:
        raise UserError(
            f"{path} has no {', '.join(missing)}; a BERT vocabulary lists one token a line, these among them"
        )
    plain = [word for word in vocabulary if word not in _BERT.values()]
    return _wordpiece(vocabulary, lowercase=all(word == word.lower() for word in plain))


def _bare_bpe(folder: Path) -> Tokenizer:
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{folder}: vocab.json and merges.txt don't make a tokenizer ({one_line(error)})") from error
    return _byte_level(model)


def _stock(path_or_name: str, path: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer  # slow to import

    if path.is_dir() and not has_tokenizer(str(path)):
        raise UserError(f"{path_or_name} has no tokenizer ({_FILES[0]} or vocab.txt); copy that of its model there")
    try:
        with hub_lookup(path if path.exists() else path_or_name):
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(path) if path.exists() else path_or_name, trust_remote_code=False
            )
    except UserError:
        raise
    except Exception as error:  # no network, no such name, broken files: transformers raises many kinds
        raise UserError(
            f"cannot load a tokenizer from {path_or_name} ({one_line(error)[:200]}); give {' or '.join(TRAINED)} to "
            "train one, a folder, a vocab.txt, or a hub name"
        ) from error
    if not knows_words(tokenizer):
        raise UserError(
            f"the tokenizer {path_or_name} has special tokens alone; copy the files of its model's vocabulary there"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{path_or_name} has no fast tokenizer (tokenizer.json); convert it with transformers first")
    missing = [name for name in _NEEDED if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(
            f"the tokenizer {path_or_name} has no {', '.join(missing)}; encoders need one as BERT's or RoBERTa's"
        )
    return tokenizer


def _wrap(backend: Tokenizer, special: dict[str, str]) -> "PreTrainedTokenizerFast":
    """A transformers tokenizer that puts the architecture's own tokens around one text and between two."""
    from transformers import PreTrainedTokenizerFast  # slow to import

    vocabulary = backend.get_vocab()
    missing = [token for token in special.values() if token not in vocabulary]
    if missing:
        raise UserError(
            f"the vocabulary has no {', '.join(dict.fromkeys(missing))}; use the one of a BERT or a RoBERTa"
        )
    mask: Any = AddedToken(special["mask_token"], lstrip=special is _ROBERTA, special=True)
    cls, sep = ((special[name], vocabulary[special[name]]) for name in ("cls_token", "sep_token"))
    if special is _ROBERTA:
        backend.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
        inputs = ["input_ids", "attention_mask"]
    else:
        backend.post_processor = processors.BertProcessing(sep, cls)
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=inputs, **{**special, "mask_token": mask}
    )
