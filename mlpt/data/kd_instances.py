"""Paragraph pairs for distillation: TAMT's data generator (from TinyBERT), as pure functions of documents.

Liu et al., NAACL 2022, `pregenerate_training_data.py --one_seq`. `packing: kd` makes blocks of these instances, whose
one corrupted token is drawn anew at each step by objective `distill`; `write_kd_data` writes the published files.
Tokens may be strings or ids.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from mlpt.errors import UserError
from mlpt.randomness import numpy_generator

Token = TypeVar("Token", str, int)
Style = Literal["bert", "roberta"]

SHORTEST_OPENING = 20  # tokens of a document's first paragraph
SHORT_PROBABILITY = 0.1  # of a document whose instances get a random target length
SPECIALS: dict[Style, int] = {"bert": 3, "roberta": 4}  # [CLS] A [SEP] B [SEP]; <s> A </s></s> B </s>


@dataclass(frozen=True)
class Instance:
    """One line of the published `epoch_0.json`; positions count from 0 in `tokens`."""

    tokens: list[str]
    segment_ids: list[int]
    is_random_next: bool
    masked_lm_positions: list[int]
    masked_lm_labels: list[str]


def kd_documents(
    lines: Iterable[str], tokenize: Callable[[str], Sequence[Token]], heading: Token
) -> Iterator[list[list[Token]]]:
    """Documents as lists of paragraphs: consecutive non-blank lines of a file, tokenised.

    A document that a blank line closes is kept if its first paragraph has SHORTEST_OPENING tokens or more and no
    `heading` token ("="); one that ends with the file is kept as it is.
    """
    document: list[list[Token]] = []
    for line in lines:
        stripped = line.strip()
        if stripped:
            document.append(list(tokenize(stripped)))
            continue
        if document and len(document[0]) >= SHORTEST_OPENING and heading not in document[0]:
            yield document
        document = []
    if document:
        yield document


def kd_pairs(
    document: Sequence[Sequence[Token]], max_tokens: int, generator: np.random.Generator
) -> Iterator[tuple[list[Token], list[Token]]]:
    """(A, B) of at most `max_tokens` together, B possibly empty: paragraphs are gathered up to a target length.

    The target is `max_tokens`, for a tenth of the documents a uniform number from 2. Two paragraphs or more are split
    at a random one. What is cut off a long pair is dropped, as is done there.
    """
    is_short = generator.random() < SHORT_PROBABILITY
    target = int(generator.integers(2, max_tokens, endpoint=True)) if is_short else max_tokens
    gathered: list[Sequence[Token]] = []
    for number, paragraph in enumerate(document, 1):
        gathered.append(paragraph)
        if sum(map(len, gathered)) < target and number < len(document):
            continue
        split = 1 if len(gathered) == 1 else int(generator.integers(1, len(gathered)))
        first = [token for one in gathered[:split] for token in one]
        second = [token for one in gathered[split:] for token in one]
        gathered = []
        truncate_pair(first, second, max_tokens, generator)
        if first or second:
            yield first, second


def truncate_pair(first: list[Token], second: list[Token], most: int, generator: np.random.Generator) -> None:
    """Drop tokens one at a time, in place, from the longer list (from `second` on a tie), front or back by chance."""
    while len(first) + len(second) > most:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if generator.random() < 0.5 else -1)


def framed(
    first: list[Token], second: list[Token], cls: Token, sep: Token, style: Style
) -> tuple[list[Token], list[int]]:
    """The sequence with its special tokens, and segment ids: 0 up to A's separator, 1 for B and its own."""
    opening = [cls] + first + [sep]  # noqa: RUF005 (unpacking loses the token's type)
    if not second:
        return opening, [0] * len(opening)
    closing = ([sep] if style == "roberta" else []) + second + [sep]
    return opening + closing, [0] * len(opening) + [1] * len(closing)


def kd_block_rows(
    documents: Iterable[list[list[int]]], block_size: int, cls: int, sep: int, pad: int, style: Style, seed: int
) -> np.ndarray:
    """(n, block_size) int64: every instance of `documents`, framed and padded; a pure function of its arguments."""
    rows = []
    for number, document in enumerate(documents):
        generator = numpy_generator(seed, "kd instances", number)
        for first, second in kd_pairs(document, block_size - SPECIALS[style], generator):
            tokens, _ = framed(first, second, cls, sep, style)
            rows.append(tokens + [pad] * (block_size - len(tokens)))
    return np.array(rows, dtype=np.int64).reshape(-1, block_size)


def corrupt_one(
    tokens: list[str], eligible: Sequence[int], mask: str, vocabulary: Sequence[str], generator: np.random.Generator
) -> tuple[list[str], list[int], list[str]]:
    """Corrupt one of the `eligible` positions: 80 % `mask`, 10 % kept, 10 % any token. (tokens, positions, labels)."""
    if not eligible:
        return tokens, [], []
    position = int(eligible[int(generator.integers(len(eligible)))])
    fate = generator.random()
    label = tokens[position]
    if fate < 0.8:
        changed = mask
    elif fate < 0.9:
        changed = label
    else:
        changed = vocabulary[int(generator.integers(len(vocabulary)))]
    return [*tokens[:position], changed, *tokens[position + 1 :]], [position], [label]


def kd_instances(
    lines: Iterable[str], tokenizer: Any, max_length: int = 512, seed: int = 0, published: bool = True
) -> Iterator[Instance]:
    """The published generator's instances, addressed by (seed, document): it has no seed itself.

    tokenizer  a transformers tokenizer; one whose sequences begin with <s> is framed as RoBERTa's.
    published  RoBERTa only. True: <s> and </s> may be the corrupted token and the mask is the text "[MASK]", which its
               vocabulary lacks, as in the published code; False: ordinary tokens and <mask>.
    """
    style: Style = "roberta" if tokenizer.cls_token == "<s>" else "bert"
    vocabulary = list(tokenizer.get_vocab())
    mask = "[MASK]" if style == "bert" or published else tokenizer.mask_token
    specials = {tokenizer.cls_token, tokenizer.sep_token} if style == "bert" or not published else set()
    most = max_length - SPECIALS[style]
    for number, document in enumerate(kd_documents(lines, tokenizer.tokenize, "=")):
        generator = numpy_generator(seed, "kd instances", number)
        for first, second in kd_pairs(document, most, generator):
            tokens, segments = framed(first, second, tokenizer.cls_token, tokenizer.sep_token, style)
            eligible = [at for at, token in enumerate(tokens) if token not in specials]
            corrupted, positions, labels = corrupt_one(tokens, eligible, mask, vocabulary, generator)
            yield Instance(corrupted, segments, False, positions, labels)


def write_kd_data(instances: Iterable[Instance], folder: str | Path, max_length: int = 512) -> int:
    """Write `epoch_0.json` (one instance a line) and `epoch_0_metrics.json`; returns the number of instances.

    Raises `UserError` when there is none.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(out / "epoch_0.json", "w", encoding="utf-8") as file:
        for instance in instances:
            file.write(json.dumps(asdict(instance)) + "\n")
            count += 1
    if count == 0:
        raise UserError("the text has no paragraph of 20 tokens: give running text with blank lines between documents")
    metrics = {"num_training_examples": count, "max_seq_len": max_length}
    (out / "epoch_0_metrics.json").write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    return count
