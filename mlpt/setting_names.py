"""What people may have meant by a key that is no setting: the keys of a tree of settings, their meaning, the nearest.

Other programs call the same things by other names; those names are looked up too.
"""

import difflib
import re
import types
import typing
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

# Names of one thing: here, and in other programs.
_SAME = (
    {"lr", "learning_rate", "learning_rates", "learningrate", "peak_lr", "max_lr", "rate"},
    {"steps", "max_steps", "num_steps", "n_steps", "train_steps", "total_steps", "iterations", "max_iters", "updates"}
    | {"epochs", "num_epochs", "num_train_epochs", "max_epochs"},
    {"batch_size", "batchsize", "bs", "batch", "per_device_train_batch_size", "train_batch_size", "global_batch_size"},
    {"micro_batch_size", "microbatch", "device_batch_size", "gradient_accumulation_steps", "grad_accum"},
    {"probability", "mask_rate", "masking_rate", "mask_prob", "mask_probability", "mlm_probability", "mlm_prob"},
    {"hidden_size", "hidden", "hidden_dim", "dim", "d_model", "n_embd", "width", "embedding_size"},
    {"intermediate_size", "ffn", "ffn_dim", "mlp_dim", "d_ff", "feed_forward"},
    {"layers", "num_layers", "n_layers", "n_layer", "num_hidden_layers", "depth"},
    {"heads", "num_heads", "n_heads", "n_head", "num_attention_heads"},
    {"vocab_size", "vocab", "vocabulary", "vocabulary_size"},
    {"block_size", "seq_len", "seq_length", "sequence_length", "max_length", "max_seq_length"},
    {"num_workers", "workers", "num_processes", "nproc", "nproc_per_node", "world_size"},
    {"gpus_per_worker", "gpus", "num_gpus", "gpu"},
    {"warmup", "warmup_steps", "warmup_ratio", "num_warmup_steps"},
    {"precision", "bf16", "fp16", "dtype", "mixed_precision", "amp"},
    {"run_dir", "output_dir", "out_dir", "output", "out", "save_dir", "folder"},
    {"pretrained", "model_name", "model_name_or_path", "init_from", "from_pretrained", "model_path"},
    {"source", "corpus", "text", "dataset", "dataset_name", "data_path", "train_file", "input"},
    {"tokenizer", "tokenizer_name", "tokenizer_path"},
    {"clip", "max_grad_norm", "grad_clip", "gradient_clip", "clip_norm", "gradient_clip_val"},
    {"checkpoint_every", "checkpoint_steps", "save_steps", "save_every", "save_interval"},
    {"evaluate_every", "eval_steps", "eval_every", "eval_interval", "evaluation_interval"},
    {"log_every", "logging_steps", "log_interval", "log_steps"},
    {"keep", "save_total_limit", "keep_checkpoints"},
    {"weight_decay", "wd", "decay"},
    {"seed", "seeds", "random_seed", "random_state"},
    {"dropout", "p_drop", "hidden_dropout_prob", "dropout_prob"},
    {"tokens", "max_tokens", "num_tokens", "token_budget"},
    {"shape", "lr_scheduler", "lr_scheduler_type", "scheduler"},
)
_LEAST = 0.62  # likeness of names below which nothing was meant
_CLOSE = 0.35  # keys whose likeness differs by less are both named


@dataclass(frozen=True)
class Key:
    """A valid key: its dotted name, its meaning (may be empty), whether only some component knows it, and whether it
    stands in the entries of a list."""

    name: str
    meaning: str
    conditional: bool = False
    of_entries: bool = False

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def depth(self) -> int:
        """1 for a key that stands in no section."""
        return self.name.count(".") + 1


def hint(cls: type[BaseModel], written: Sequence[str], beside: Sequence[str], prefix: str = "") -> str:
    """The question with which an error about the unknown key `written` ends; the valid names if no key is like it.

    beside  the valid names where the wrong one stands. prefix: what people write before the keys of `cls`.
    """
    likely = [(_likeness(written, key, beside), _likeness_of_path(written, key), key) for key in keys_of(cls)]
    # Keys of one name: the one that stands as deep as what was written, then the likest path, then the first.
    likely.sort(key=lambda entry: (-entry[0], abs(entry[2].depth - len(written)), -entry[1]))
    scored = [
        (score + path, key) for score, path, key in likely if key.name != ".".join(written) and score + path >= _LEAST
    ]
    if not scored:
        return f"valid: {', '.join(beside)}"
    most, best = scored[0]
    first = f"'{prefix}{best.name}'"
    others = [key for score, key in scored[1:] if most > 1 and most - score < _CLOSE and key.leaf != best.leaf]
    if others:
        second = others[0]
        return f"did you mean {first}{_told(best)} or '{prefix}{second.name}'{_told(second)}?"
    return f"did you mean {first}?{_told(best)}"


def _told(key: Key) -> str:
    return f" ({key.meaning})" if key.meaning else ""


def keys_of(
    cls: type[BaseModel], prefix: str = "", conditional: bool = False, of_entries: bool = False
) -> Iterator[Key]:
    """All keys of a tree of settings: sections first, then what stands in them."""
    described = docstring_entries(cls)
    for name, field in cls.model_fields.items():
        inner = settings_in(field.annotation)
        meaning = "" if inner else _values(field.annotation) or _short(field.description or described.get(name, ""))
        yield Key(prefix + name, meaning, conditional, of_entries)
        several = of_entries or typing.get_origin(field.annotation) in (list, tuple)
        for one in inner:
            optional = len(inner) > 1 or field.default is None or several
            yield from keys_of(one, f"{prefix}{name}.", conditional or optional, several)
    more = getattr(cls, "settings_by_name", None)
    for name, classes in more().items() if more is not None else ():
        keys = (key for one in classes for key in keys_of(one, f"{prefix}{name}.", conditional=True))
        yield from {key.name: key for key in keys}.values()


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The classes of settings in a field's type: one, those of a union, those in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias) or typing.get_origin(annotation) is not None:
        return [found for inner in typing.get_args(annotation) for found in settings_in(inner)]
    return []


def _likeness(written: Sequence[str], key: Key, beside: Sequence[str]) -> float:
    """0 to about 2: equal names, then names that mean the same, then names that look the same."""
    leaf, parts = written[-1].lower().replace("-", "_"), key.name.split(".")
    score = difflib.SequenceMatcher(None, leaf, key.leaf).ratio() - 0.2
    if leaf == key.leaf:
        score = 1.5
    elif any(leaf in names and key.leaf in names for names in _SAME):
        score = 1.4
    if len(written) > 1 and parts[-len(written) :] == list(written):
        score += 0.5
    is_beside = parts[:-1] == list(written[:-1]) and key.leaf in beside
    if key.conditional and not is_beside:
        score -= 0.3 + 0.05 * max(0, len(parts) - 3)  # the deeper, the less likely meant
    if key.of_entries and not is_beside:
        score -= 0.2  # nobody can write it on the command line
    return score + 0.2 * is_beside


def _likeness_of_path(written: Sequence[str], key: Key) -> float:
    """0 to 0.2."""
    return 0.2 * difflib.SequenceMatcher(None, ".".join(written), key.name).ratio()


def _values(annotation: Any) -> str:
    """The values of a `Literal`."""
    is_literal = typing.get_origin(annotation) is typing.Literal
    return " or ".join(map(str, typing.get_args(annotation))) if is_literal else ""


def docstring_entries(cls: type[BaseModel]) -> dict[str, str]:
    """`name   meaning` lines of the docstrings of a class and of those it inherits from, as the house writes them; a
    meaning may go on in deeper lines."""
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            entries |= _written(base.__doc__ or "", cls.model_fields)
    return entries


def _written(docstring: str, fields: Container[str]) -> dict[str, str]:
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.splitlines():
        begun = re.match(r"^\s{0,8}([a-z_]+(?:, [a-z_]+)*)(?:\s{2,}|: )(\S.*)$", line)
        if begun and all(name in fields for name in begun.group(1).split(", ")):
            names = begun.group(1).split(", ")
            entries |= dict.fromkeys(names, begun.group(2))
        elif names and re.match(r"^\s{9,}\S", line):
            entries |= {name: f"{entries[name]} {line.strip()}" for name in names}
        else:
            names = []
    return entries


def _short(meaning: str) -> str:
    """The first statement of a description."""
    return re.split(r"[;.](?:\s|$)", " ".join(meaning.split()), maxsplit=1)[0].rstrip(".").replace("`", "")
