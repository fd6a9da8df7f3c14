"""Which shares of text domains suit a target text, by counting pairs of tokens: `python counted_mix.py BLOCKS TARGET`.

BLOCKS is what `mlpt prepare` made of texts with domains, TARGET what it made of the target's text with the tokenizer
of BLOCKS (`tokenizer=BLOCKS/tokenizer`). Each domain has a bigram model; the shares are those of their mixture under
which the target's training text is likeliest (by EM; Dempster, Laird and Rubin, 1977).
"""

import sys

import numpy as np
from numpy.typing import NDArray

from mlpt.data.blocks import Blocks
from mlpt.errors import UserError

PRIOR = 64.0  # pairs, spread as the domain's tokens are, that count as seen after every token


def pairs(blocks: Blocks, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each token and the one after it, within blocks: (n, 2) int64."""
    tokens = blocks.tokens(rows).numpy()
    return np.stack([tokens[:, :-1].ravel(), tokens[:, 1:].ravel()], axis=1)


def probabilities(of: NDArray[np.int64], wanted: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """What a bigram model counted on the pairs `of` (n, 2) gives each of the pairs `wanted` (m, 2): (m,) float64.

    size  of the vocabulary.
    """
    alone = (np.bincount(of[:, 1], minlength=size) + 1) / (len(of) + size)
    before = np.bincount(of[:, 0], minlength=size)
    seen, count = np.unique(of[:, 0] * size + of[:, 1], return_counts=True)
    place = np.minimum(np.searchsorted(seen, key := wanted[:, 0] * size + wanted[:, 1]), len(seen) - 1)
    both = np.where(seen[place] == key, count[place], 0)
    return (both + PRIOR * alone[wanted[:, 1]]) / (before[wanted[:, 0]] + PRIOR)


def likeliest_shares(given: NDArray[np.float64], rounds: int = 500) -> NDArray[np.float64]:
    """Shares (domains,) of the mixture that gives the target the highest likelihood; `given` (domains, pairs)."""
    shares = np.full(len(given), 1 / len(given))
    for _ in range(rounds):
        parts = shares[:, None] * given
        shares = (parts / parts.sum(0)).mean(1)
    return shares


def main(blocks: str, target: str) -> None:
    """Print the shares as a setting, and the target's loss under equal parts and under them, in nats a token."""
    texts, wanted = Blocks.open(blocks, "train"), Blocks.open(target, "train")
    wanted.require_tokenizer(texts.tokenizer(), "of the texts ")
    asked = pairs(wanted, np.arange(len(wanted)))
    size = texts.vocabulary.size
    given = np.stack([probabilities(pairs(texts, texts.rows_of(name)), asked, size) for name in texts.domains])
    shares = likeliest_shares(given)
    named = ", ".join(f"{name}: {share:.3f}" for name, share in zip(texts.domains, shares, strict=True))
    print(f'"data.mix={{{named}}}"')
    equal, best = (float(-np.log(one @ given).mean()) for one in (np.full(len(given), 1 / len(given)), shares))
    print(f"equal parts {equal:.3f} nats, these {best:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: counted_mix.py BLOCKS TARGET")
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
