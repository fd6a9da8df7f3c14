"""Questioning a split: parts of rows scored anywhere, written whole, and made readable by a manifest at the end."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig

from mlpt.data.blocks import Blocks
from mlpt.data.score_parts import begin, check_place, finish, scores_place, write_part
from mlpt.data.token_scores import Question, ScorePart, TokenScores
from mlpt.data.tokenizers import load_tokenizer
from mlpt.models.config import attends_within_documents, check_pretrained
from mlpt.models.encoder import Encoder, load_encoder
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.scoring import model_digest, score_tokens
from mlpt.sparsity.artefacts import fit, load_masks, zero_pruned
from mlpt.storage.files import absolute
from mlpt.storage.store import Store

Progress = Callable[[int, int, int], None]  # rows scored now, rows scored in all, rows of the split


@dataclass(frozen=True)
class Task:
    """All that any process needs to score a part; picklable, the weights as arrays that processes can share."""

    config: QuestionConfig
    question: Question
    blocks: Blocks
    architecture: PreTrainedConfig
    weights: dict[str, NDArray[Any]]

    def encoder(self, device: str) -> Encoder:
        """The model, on `device`."""
        with torch.random.fork_rng(devices=[]):
            backbone = AutoModelForMaskedLM.from_config(self.architecture, dtype=torch.float32)
        own = backbone.state_dict()
        with torch.no_grad():
            for name, value in self.weights.items():
                own[name].copy_(torch.tensor(value))
        return Encoder(backbone, {}).to(device).eval()


Run = Callable[[Task, list[int]], Iterable[ScorePart]]  # scores the parts of these numbers, in any order


def question(
    config: QuestionConfig,
    run: Run | None = None,
    progress: Progress = lambda now, done, total: None,
    overwrite: bool = False,
) -> TokenScores:
    """Score every token of a split and leave the scores in `config.out`; what an earlier call committed is kept.

    run        scores parts elsewhere than in this process.
    overwrite  earlier scores in the folder are replaced.

    Raises UserError for a model without a language-modelling head, of another vocabulary, or with masks of another
    model beside its weights, blocks that can't be read, a folder with something else or with the answer to another
    question, a full disk.
    """
    check_place(config.out, overwrite)
    blocks = Blocks.open(config.blocks, config.split)
    encoder = load_encoder(config.model, {}, complete=True).eval()
    if config.masks is not None:  # their zeros are in the digest of the weights that answer
        zero_pruned(encoder, fit(load_masks(config.masks, encoder), encoder))
    blocks.tells_documents = attends_within_documents(encoder.config)
    _check_fit(config.model, encoder, blocks)
    config = config.model_copy(update={"out": absolute(config.out)})
    asked = Question.of(blocks, model_digest(encoder), config.thresholds(), config.decisive())
    task = Task(config, asked, blocks, encoder.config, _weights(encoder.backbone))
    with scores_place(config.out, overwrite) as store:
        parts = begin(store, asked)
        waiting = [number for number in range(asked.parts) if number not in parts]
        before = done = sum(part.entry.rows for part in parts.values())
        progress(0, done, asked.rows)
        encoder.to("cuda" if run is None and torch.cuda.is_available() else "cpu")
        for part in run(task, waiting) if run else (score_part(task, encoder, number) for number in waiting):
            parts[part.number] = part
            done += part.entry.rows
            progress(done - before, done, asked.rows)
        finish(store, asked, parts.values())
    return TokenScores.open(config.out, blocks, asked.model)


def score_part(task: Task, encoder: Encoder, number: int) -> ScorePart:
    """Score part `number` and commit it."""
    rows = task.question.rows_of(number)
    batch, vocabulary = task.blocks.batch(rows), task.blocks.vocabulary
    scores = score_tokens(encoder, batch.tokens, rows, vocabulary, task.config, batch.documents)
    real = int((batch.tokens != vocabulary.pad).sum())
    return write_part(Store(task.config.out), task.question, number, scores, real)


def _check_fit(name: str, encoder: Encoder, blocks: Blocks) -> None:
    check_pretrained(encoder.config, blocks.vocabulary, blocks.block_size, name)
    if any((Path(name) / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
        blocks.require_tokenizer(load_tokenizer(name))


def _weights(backbone: nn.Module) -> dict[str, NDArray[Any]]:
    """Of the state dict, each tensor once: a tied one goes with the other."""
    unique = {id(value): (name, value) for name, value in backbone.state_dict(keep_vars=True).items()}
    return {name: value.detach().numpy() for name, value in unique.values()}
