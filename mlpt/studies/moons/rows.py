"""Batches of the two-moons study: addressed by seed and step, so that cells with the same seed see the same texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlpt.data.two_moons import TOKENS, pretraining_texts, train_tokenizer
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.counted_masking import CountedMaskingConfig, drawn_count, mask_counted, mlm_token
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.tasks.text_to_text import TextToTextConfig, Writer, stack_windows
from mlpt.tasks.two_moons import SIZES, load_two_moons
from mlpt.training.many_maskers import MaskStep
from mlpt.training.many_teachers import Labelled, Step

MASKED = 6  # positions of a text that are masked at most: 0.15 * 34, rounded up or down by chance
SPAN = 50  # steps whose batches are made at once


@dataclass(frozen=True)
class Points:
    """(n, 4) tokens, (n, 4) the label's token at each, (n,) the moon (-1: unknown), (n, 2) x and y."""

    tokens: Tensor
    targets: Tensor
    moons: Tensor
    places: Tensor


class Rows:
    """All text and points of the study as tokens."""

    def __init__(self, vocabulary: Literal["all", "used"] = "all") -> None:
        self.tokenizer = train_tokenizer()
        self.vocabulary = Vocabulary.of(self.tokenizer)
        self._number: Tensor | None = None  # of each token among those used
        self._points: dict[tuple[int, str], Points] = {}
        self.texts = {split: self._texts(split) for split in ("train", "dev")}  # (n, 34) int64
        if vocabulary == "used":
            self._renumber()

    def _renumber(self) -> None:
        """Leave out tokens that no text and no point has. Special tokens are the first and keep their ids."""
        special = torch.tensor(self.vocabulary.special_ids)
        grid = self.points(SIZES[0], "grid").tokens
        used = torch.cat([special, grid.flatten(), *(one.flatten() for one in self.texts.values())]).unique()
        if used[: len(special)].tolist() != list(range(len(special))):
            raise ValueError("special tokens are not the first of the vocabulary")
        self._number = torch.full((self.vocabulary.size,), -1).index_put((used,), torch.arange(len(used)))
        self.vocabulary = replace(self.vocabulary, size=len(used))
        self.texts = {split: self._number[one] for split, one in self.texts.items()}
        self._points.clear()

    def points(self, labels: int, split: str) -> Points:
        """The points of a split of the task with so many labels."""
        if (labels, split) not in self._points:
            data = load_two_moons(f"two_moons_{labels}", [split])
            examples = data.splits[split]
            writer = Writer(data.task, self.tokenizer, TextToTextConfig(max_length=8, overlap=4))
            written, _ = stack_windows(writer.write(examples))
            moons = torch.tensor([-1 if one.label is None else one.class_id for one in examples])
            tokens, targets = torch.from_numpy(written.inputs), torch.from_numpy(written.targets)
            if self._number is not None:
                tokens, targets = self._number[tokens], self._number[targets]
            places = torch.tensor([[int(word) for word in one.first.split()] for one in examples])
            parts = tokens, targets, moons, places
            self._points[labels, split] = Points(*parts)
        return self._points[labels, split]

    def _texts(self, split: str) -> Tensor:
        texts = pretraining_texts(split)
        encoded = self.tokenizer(texts, add_special_tokens=True)["input_ids"]
        found = torch.tensor(encoded)
        if found.shape != (len(texts), TOKENS):
            raise ValueError(f"texts of two moons are {TOKENS} tokens, not {tuple(found.shape)}")
        return found


class Batches:
    """The batches of several models, each with a label count and a seed of its own: `models`.

    For each step: `text`, what masked language modelling makes of it, and labelled rows, which are of masked text at
    `is_mlm(step)`, else of points.
    """

    def __init__(
        self, rows: Rows, models: Sequence[tuple[int, int]], texts: int, labelled: int, query_share: float, mlm: bool
    ):
        self._rows, self._models = rows, models
        self._texts, self._labelled, self._mlm = texts, labelled, mlm
        self._query_share = query_share
        self._span = -1
        self._made: dict[str, Tensor] = {}

    def is_mlm(self, step: int) -> bool:
        """Whether the teacher is judged by masked text in this step (from 0): equal for all cells."""
        return self._mlm and numpy_generator(0, "moons/task", step).random() < 0.5

    def masked(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Masked texts, the positions to predict, and their labels: (models, rows, ...)."""
        return _asked(self._at("masked", step), self._at("labels", step))

    def taught(self, step: int) -> Step:
        """Of students with teachers."""
        text, masked, labels, noise = (self._at(name, step) for name in ("text", "masked", "labels", "noise"))
        return Step(text, masked, labels, noise, *self._episode(step))

    def maskers(self, step: int) -> MaskStep:
        """Of students with maskers."""
        text, noise = self._at("text", step), self._at("noise", step)
        among = ~self._rows.vocabulary.is_special(text)
        names = ("random", "counts")
        random, counts = (self._at(name, step) for name in names)
        return MaskStep(text, random, among, counts.squeeze(-1), noise[:, 0], *self._episode(step))

    def _episode(self, step: int) -> tuple[Labelled, Labelled]:
        kind = "mlm" if self.is_mlm(step) else "points"
        sides = []
        for side in ("support", "query"):
            tokens, labels = self._at(f"{kind}/{side}", step), self._at(f"{kind}/{side}/labels", step)
            if kind == "mlm":
                sides.append(Labelled(*_asked(tokens, labels)))
            else:
                at = torch.arange(tokens.shape[-1]).expand(tokens.shape).contiguous()
                sides.append(Labelled(tokens, at, labels))
        return sides[0], sides[1]

    def _at(self, name: str, step: int) -> Tensor:
        if step // SPAN != self._span:
            self._span = step // SPAN
            of_seed = {seed: self._make(seed, self._span) for _, seed in self._models}
            made = [of_seed[seed] | self._labelled_rows(labels, seed, self._span) for labels, seed in self._models]
            self._made = {key: torch.stack([one[key] for one in made], dim=1) for key in made[0]}
        return self._made[name][step % SPAN]  # of (SPAN, models, ...)

    def _make(self, seed: int, span: int) -> dict[str, Tensor]:
        """Of one model, (SPAN, ...) each."""
        vocabulary, count = self._rows.vocabulary, SPAN * self._texts
        train = self._rows.texts["train"]
        picks = numpy_generator(seed, "moons/texts", span).integers(len(train), size=count)
        text = train[torch.from_numpy(picks)]
        generator = torch_generator(seed, "moons/noise", span)
        masked, labels = self._mask(text, generator)
        among = ~vocabulary.is_special(text)
        noise = torch.rand((count, 2, TOKENS), generator=generator)
        random = torch.randint(len(vocabulary.special_ids), vocabulary.size, text.shape, generator=generator)
        found = {
            "text": text,
            "masked": masked,
            "labels": labels,
            "random": random,
            "counts": drawn_count(among, 0.15, generator).unsqueeze(-1),
        }
        found = {key: one.view(SPAN, self._texts, -1) for key, one in found.items()}
        found["noise"] = noise.view(SPAN, self._texts, 2, TOKENS).transpose(1, 2)
        return found

    def _labelled_rows(self, labels: int, seed: int, span: int) -> dict[str, Tensor]:
        points = self._rows.points(labels, "train")
        shape = (SPAN, self._labelled)
        generator = numpy_generator(seed, f"moons/episodes/{labels}/{self._query_share}", span)
        judges = int(np.ceil(labels * self._query_share))
        if judges:
            order = numpy_generator(seed, "moons/split").permutation(labels)
            support = order[judges:][generator.integers(labels - judges, size=shape)]
            query = order[:judges][generator.integers(judges, size=shape)]
        else:
            support = generator.integers(labels, size=shape)
            other = generator.integers(labels - 1, size=shape)
            query = other + (other >= support)  # never the same row at once
        found: dict[str, Tensor] = {}
        for side, chosen in (("support", support), ("query", query)):
            picks = torch.from_numpy(np.asarray(chosen))
            found[f"points/{side}"], found[f"points/{side}/labels"] = points.tokens[picks], points.targets[picks]
        if self._mlm:
            dev = self._rows.texts["dev"]
            noise = torch_generator(seed, "moons/episodes/mlm", span)
            for side in ("support", "query"):
                picks = torch.from_numpy(generator.integers(len(dev), size=SPAN * self._labelled))
                masked, asked = self._mask(dev[picks], noise)
                found[f"mlm/{side}"] = masked.view(*shape, TOKENS)
                found[f"mlm/{side}/labels"] = asked.view(*shape, TOKENS)
        return found

    def _mask(self, text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        vocabulary = self._rows.vocabulary
        return mask_counted(text, vocabulary, generator, CountedMaskingConfig(), mlm_token(vocabulary))


def _asked(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the positions with a label (others fill up to MASKED, with label 0), and the labels."""
    at = (labels != 0).long().topk(MASKED, dim=-1).indices
    return tokens, at, labels.gather(-1, at)
