"""A tiny saved encoder and tiny learnable tasks that several tests of multi-task fine-tuning share."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from mlpt.tasks.features import Features

WORDS = ["good", "bad", "fine", "poor", "cat", "dog", "sat", "ran", "the", "a", "on", "mat", "big", "small", "very"]


def write_tokenizer(folder: Path) -> int:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=30, **special).save_pretrained(folder)
    return len(vocabulary)


def saved_encoder(folder: Path, roberta: bool = False, layers: int = 2) -> str:
    """A masked language model of 2 layers x 32 with its tokenizer, as pretraining saves them."""
    sizes = {
        "vocab_size": write_tokenizer(folder),
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = (
        RobertaForMaskedLM(RobertaConfig(**sizes, type_vocab_size=1))
        if roberta
        else BertForMaskedLM(BertConfig(**sizes))
    )
    model.save_pretrained(folder)
    return str(folder)


def own_tasks(folder: Path) -> dict:
    """Two learnable classifications of one and of two texts, and a regression, in the user's own files."""
    generator = np.random.default_rng(0)

    def text(*extra: str) -> str:
        words = [*extra, *generator.choice(WORDS[4:], generator.integers(2, 7))]
        return " ".join(generator.permutation(words))

    def write(name: str, rows: list[dict]) -> dict:
        for split, part in (("train", rows[:-16]), ("dev", rows[-16:])):
            (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        return {"name": name, **{split: str(folder / f"{name}_{split}.jsonl") for split in ("train", "dev")}}

    mood = [{"text": text("good" if i % 2 else "bad"), "label": ["no", "yes"][i % 2]} for i in range(64)]
    same = [
        {"first": text("cat"), "second": text(["cat", "dog", "mat"][i % 3]), "label": ["x", "y", "z"][i % 3]}
        for i in range(48)
    ]
    grade = [{"text": text(*["good"] * (i % 4)), "value": i % 4 + 0.5} for i in range(40)]
    return _own(write("mood", mood), write("same", same), write("grade", grade))


def token_tasks(folder: Path) -> dict:
    """Two learnable tasks with answers at tokens: which animals are in a sentence, and where the asked one stands."""
    generator = np.random.default_rng(1)
    fillers = ["the", "a", "on", "mat", "very", "big", "small"]

    def words(count: int) -> list[str]:
        return [str(word) for word in generator.choice(fillers, count)]

    def tagged() -> dict:
        before, after, long = words(generator.integers(0, 4)), words(generator.integers(1, 4)), generator.random() < 0.5
        animal = [str(generator.choice(["cat", "dog"])), *(["ran"] if long else [])]
        tags = ["B-X", *(["I-X"] if long else [])]
        return {"words": before + animal + after, "tags": ["O"] * len(before) + tags + ["O"] * len(after)}

    def asked() -> dict:
        before, after = words(generator.integers(0, 12)), words(generator.integers(1, 12))
        context = " ".join([*before, "cat", "ran", *after])
        return {"q": "cat", "c": context, "a": "cat ran", "answer_start": context.index("cat ran")}

    tasks = []
    settings = {
        "animals": {"first": "words", "label": "tags", "kind": "token_classification"},
        "where": {"first": "q", "second": "c", "label": "a", "kind": "span"},
    }
    for name, make in (("animals", tagged), ("where", asked)):
        for split, rows in (("train", 64), ("dev", 16)):
            lines = [json.dumps(make()) + "\n" for _ in range(rows)]
            (folder / f"{name}_{split}.jsonl").write_text("".join(lines))
        files = {split: str(folder / f"{name}_{split}.jsonl") for split in ("train", "dev")}
        tasks.append({"name": name, **files, **settings[name]})
    return {"own": tasks}


def _own(mood: dict, same: dict, grade: dict) -> dict:
    return {
        "own": [
            {**mood, "first": "text", "label": "label", "labels": ["no", "yes"]},
            {**same, "first": "first", "second": "second", "label": "label", "labels": ["x", "y", "z"]},
            {**grade, "first": "text", "label": "value", "kind": "regression"},
        ]
    }


def rows_of(lengths: list[int], labels: list, types: bool = False) -> Features:
    """Rows whose tokens count up from 5."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = (5 + np.arange(offsets[-1]) % 50).astype(np.int32)
    kinds = (np.arange(offsets[-1]) % 2).astype(np.uint8) if types else None
    dtype = np.float32 if any(isinstance(label, float) for label in labels) else np.int64
    return Features(tokens, kinds, offsets, np.array(labels, dtype=dtype), np.arange(len(lengths)), pad=0)
