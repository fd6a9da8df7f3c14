"""The text of a run as sources: all of it, each of its domains, and in which order each gives its rows."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlpt.data.batch import Batch, Rows, Source, Split
from mlpt.data.blocks import Blocks
from mlpt.data.character_sampler import CharacterSampler, character_counts
from mlpt.data.config import unfit_for_a_domain
from mlpt.data.sampler import Sampler
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.randomness import numpy_generator

ALL = "all"  # the source of all text
TEXTS = "texts"  # the source of a target's texts, which nothing trains on
PERIOD = 1 << 14  # rows in which a fixed mix has its exact shares, to 1 / PERIOD


class Walk(Protocol):
    """The endless order in which a source gives its rows."""

    def take(self, position: int, count: int) -> NDArray[np.int64]:
        """`count` row numbers from `position` on."""
        ...


class Subset:
    """Some rows of others, numbered anew."""

    def __init__(self, rows: Rows, numbers: NDArray[np.int64]):
        """numbers: (n,) int64, the rows that the subset holds."""
        self._rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """These rows of the subset, with their numbers among all rows."""
        return self._rows.batch(self.numbers[rows])


class Sources(Mapping[str, Source]):
    """Sources by name: `all`, each domain of the training text, `texts` where a target has texts of its own, and those
    that were added.

    mix  share of each domain in what `all` gives, or "uniform"; "characters": rows drawn in proportion to their
         characters, with replacement; else in proportion to the rows there are.
    """

    def __init__(self, train: Blocks, dev: Blocks, test: Blocks, mix: Mapping[str, float] | str | None = None):
        self.train, self.dev, self.test = train, dev, test
        self.mix = _shares(mix, train)
        self._by_characters = mix == "characters"
        self._found: dict[str, Source] = {ALL: Source(train, dev, test)}

    @classmethod
    def open(
        cls,
        blocks: str,
        mix: Mapping[str, float] | str | None = None,
        texts: str | None = None,
        tells_documents: bool = False,
    ) -> "Sources":
        """The prepared folder `blocks`, and `texts`, a prepared folder of which the training split is meta-dev.

        tells_documents  batches of text say which document each token belongs to.
        """

        def split(folder: str, name: Split) -> Blocks:
            return Blocks.open(folder, name, tells_documents=tells_documents)

        sources = cls(split(blocks, "train"), split(blocks, "dev"), split(blocks, "test"), mix)
        if texts is not None:
            held_out = split(texts, "train")
            sources._found[TEXTS] = Source(held_out, held_out, split(texts, "test"))
        return sources

    @property
    def block_size(self) -> int:
        """Tokens in a row."""
        return self.train.block_size

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of all rows."""
        return self.train.vocabulary

    @property
    def domains(self) -> list[str]:
        """The domains of the training text."""
        return list(self.train.domains)

    def __getitem__(self, name: str) -> Source:
        if name not in self._found:
            if name not in self.train.domains:
                raise KeyError(name)
            self._found[name] = self._domain(name)
        return self._found[name]

    def _domain(self, name: str) -> Source:
        return Source(*(Subset(blocks, blocks.rows_of(name)) for blocks in (self.train, self.dev, self.test)))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([ALL, *self.domains, *self._found]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def add(self, name: str, rows: Source) -> None:
        """A source beside the text: the rows of a labelled task. Raises `UserError` for the name of a domain."""
        if name in self:
            raise UserError(f"'{name}' names a domain of the text and a task: give one of them another name")
        self._found[name] = rows

    def check(self, name: str) -> None:
        """Raise `UserError` unless a domain has training, dev and test text."""
        source = self._found[name] if name in self._found else self._domain(name)
        for split, rows in (("training", source.train), ("dev", source.dev), ("test", source.test)):
            if not len(rows):
                raise UserError(
                    f"the domain '{name}' has no block of {split} text: give more of it, say what its documents are "
                    "(data.documents), or raise data.dev_share and data.test_share"
                )

    def walk(self, name: str, batch_size: int, seed: int) -> Walk:
        """The order of a source's training rows. Raises `UserError` where it has too few for a batch."""
        if name == ALL and self.mix is not None:
            return MixedWalk(self, self.mix, batch_size, seed)
        if name == ALL and self._by_characters:
            return CharacterSampler(character_counts(self.train), batch_size, seed)
        if name == ALL:
            return Sampler(len(self.train), batch_size, seed)
        return self._domain_walk(name, batch_size, seed)

    def _domain_walk(self, name: str, batch_size: int, seed: int) -> Sampler:
        rows = len(self[name].train)
        if rows < batch_size:
            if name not in self.domains:
                raise UserError(
                    f"task '{name}' has {rows} rows to train on, fewer than one batch of {batch_size}: give more, "
                    "leave it out, or lower train.batch_size or labelled.dev_rows"
                )
            raise UserError(
                f"the domain '{name}' has {rows} blocks of training text, fewer than one batch of {batch_size}: give "
                "more of it, leave it out, or lower train.batch_size or data.block_size"
            )
        return Sampler(rows, batch_size, seed, stream=name)


class MixedWalk:
    """Rows of all domains in fixed shares: each domain walks its own order, and their turns are shuffled."""

    def __init__(self, sources: Sources, mix: Mapping[str, float], batch_size: int, seed: int):
        self._names = [name for name, share in mix.items() if share > 0]
        self._numbers = [_numbers(sources[name].train) for name in self._names]
        self._walks = [sources._domain_walk(name, batch_size, seed) for name in self._names]
        self._quotas = _quotas([mix[name] for name in self._names])
        self._seed = seed
        self._turns: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def take(self, position: int, count: int) -> NDArray[np.int64]:
        """`count` row numbers among all rows from `position` on."""
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            period, place = divmod(position, PERIOD)
            some = min(count, PERIOD - place)
            parts.append(self._inside(period, place, some))
            position, count = position + some, count - some
        return np.concatenate(parts)

    def _inside(self, period: int, place: int, count: int) -> NDArray[np.int64]:
        turns, earlier = self._turns_of(period)
        here = turns[place : place + count]
        found = np.empty(count, dtype=np.int64)
        for number in np.unique(here).tolist():
            mine = np.flatnonzero(here == number)
            before = period * int(self._quotas[number]) + int(earlier[place + mine[0]])
            found[mine] = self._numbers[number][self._walks[number].take(before, len(mine))]
        return found

    def _turns_of(self, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Whose turn each row of a period is, and how many turns that domain had before in it; the last one is kept."""
        if self._turns is None or self._turns[0] != period:
            turns = np.repeat(np.arange(len(self._names)), self._quotas)
            turns = numpy_generator(self._seed, "sampler/mix", period).permutation(turns)
            order = np.argsort(turns, kind="stable")
            earlier = np.empty(PERIOD, dtype=np.int64)
            earlier[order] = np.concatenate([np.arange(quota) for quota in self._quotas])
            self._turns = (period, turns, earlier)
        return self._turns[1:]


def _numbers(rows: Rows) -> NDArray[np.int64]:
    assert isinstance(rows, Subset)
    return rows.numbers


def _quotas(shares: list[float]) -> NDArray[np.int64]:
    """Turns of each in a period, at least one, by largest remainders."""
    exact = np.array(shares) / sum(shares) * PERIOD
    quotas = np.maximum(1, np.floor(exact)).astype(np.int64)
    order = np.argsort(quotas - exact, kind="stable")  # the most short-changed first
    for turn in range(abs(PERIOD - int(quotas.sum()))):
        at = order[turn % len(order)] if quotas.sum() < PERIOD else int(np.argmax(quotas))
        quotas[at] += 1 if quotas.sum() < PERIOD else -1
    return quotas


def _shares(mix: Mapping[str, float] | str | None, train: Blocks) -> dict[str, float] | None:
    if mix not in (None, "characters"):
        _check_domains(train)
    if mix == "uniform":
        mix = dict.fromkeys(train.domains, 1.0)
    if mix is None or isinstance(mix, str):
        return None
    unknown = [name for name in mix if name not in train.domains]
    if unknown:
        raise UserError(
            f"data.mix names the domain '{unknown[0]}', of which there is no training text; there are "
            f"{', '.join(train.domains)}"
        )
    total = sum(mix.values())
    return {name: share / total for name, share in mix.items()}


def _check_domains(train: Blocks) -> None:
    """Raise `UserError` unless there are domains that a run can tell apart."""
    if not train.domains:
        raise UserError(
            f"no domain fills a block of {train.block_size} tokens with training text, which data.mix needs: give more "
            "text of each, or lower data.block_size"
        )
    for name in train.domains:
        if (unfit := unfit_for_a_domain(name)) is not None:
            raise UserError(
                f"{unfit}; the text names it by a file or by rows, so name it yourself, data.sources={{NAME: PLACE}}, "
                "or rename that"
            )
