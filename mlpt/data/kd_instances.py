"""Paragraph pairs for distillation: TAMT's data generator (from TinyBERT), as pure functions of documents.

Liu et al., NAACL 2022, `pregenerate_training_data.py --one_seq`. `packing: kd` makes blocks of these instances, whose
one corrupted token is drawn anew at each step by objective `distill`.
Tokens may be strings or ids.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np

from mlpt.randomness import numpy_generator

Token = TypeVar("Token", str, int)
Style = Literal["bert", "roberta"]

SHORTEST_OPENING = 20  # tokens of a document's first paragraph
SHORT_PROBABILITY = 0.1  # of a document whose instances get a random target length
SPECIALS: dict[Style, int] = {"bert": 3, "roberta": 4}  # [CLS] A [SEP] B [SEP]; <s> A </s></s> B </s>


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
