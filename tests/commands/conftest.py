"""A folder of things that people hand to commands: good ones, and bad ones of every kind. Commands run in it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from workspace import Workspace

from mlpt.cli import run as mlpt

SETTINGS = {
    "name": "tiny",
    "run_dir": "run",
    "data": {"source": "blocks"},
    "model": {"hidden_size": 32, "layers": 2, "heads": 2},
    "objectives": ["mlm"],
    "meta": {"rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": 2, "batch_size": 4, "evaluate_batches": 1},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False},
}
WORDS = "the model reads a line of text and says what the masked words of this sentence number {} may have been"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as it is handed out; nobody writes into it."""
    folder = tmp_path_factory.mktemp("workspace")
    here = Path.cwd()
    os.chdir(folder)
    try:
        _write_texts()
        _write_results()
        _write_damaged()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def workspace(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Workspace]:
    """Runs commands in the folder, and knows whether they have changed anything there."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # names that are no folder are looked up nowhere
    shared = Workspace(made, capsys)
    yield shared
    shared.remove_what_is_new()  # a test that failed does not fail the others


@pytest.fixture
def own_workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Workspace:
    """The same in a copy that the test may change."""
    copy = tmp_path / "workspace"
    shutil.copytree(made, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Workspace(copy, capsys)


def _write_texts() -> None:
    Path("text.txt").write_text("\n\n".join(WORDS.format(number) + "." for number in range(3000)))
    Path("two words").mkdir()
    shutil.copy("text.txt", "two words/lr=3e-4.txt")
    Path("user").mkdir()
    Path("user/notes.md").write_text("mine\n")
    Path("file").write_text("mine\n")
    Path("empty.txt").touch()
    Path("empty").mkdir()
    Path("short.txt").write_text("too little\n")
    Path("image.png").write_bytes(b"\x89PNG\r\n")
    Path("recipe.yaml").write_text(json.dumps(SETTINGS))  # JSON is YAML
    Path("cloze.jsonl").write_text('{"text": "the model [MASK] a line", "answer": "reads"}\n')
    rows = [f"{WORDS.format(number)}\t{number % 2}" for number in range(64)]
    words = {"words": WORDS.split(), "tags": ["B-X", *["O"] * (len(WORDS.split()) - 1)]}
    bad = {"uneven": {"words": ["two", "words"], "tags": ["O"]}, "wordless": {"words": [], "tags": []}}
    bad["unknown"] = {"words": ["one"], "tags": ["B-Y"]}
    Path("tagged.jsonl").write_text(json.dumps(words) + "\n")
    for name, row in bad.items():
        Path(f"{name}.jsonl").write_text(json.dumps(words) + "\n" + json.dumps(row) + "\n")
        task = {"name": "tagged", "kind": "token_classification", "train": "tagged.jsonl", "dev": f"{name}.jsonl"}
        Path(f"{name}.yaml").write_text(json.dumps(task | {"first": "words", "label": "tags"}))
    Path("rows.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")


def _write_results() -> None:
    """What the commands make where all goes well."""
    small = ["--set", "vocab_size=200", "--set", "block_size=32"]
    for words in (
        ["prepare", "text.txt", "--out", "blocks", *small],
        ["pretrain", "recipe.yaml"],
        ["prune", "run", "--sparsity", "0.5", "--out", "masks"],
        ["prune", "run", "--sparsity", "0.5", "--out", "masks.pt"],
        ["prune", "run", "--sparsity", "0.5", "--structured", "heads", "--out", "heads.npy"],
        ["export", "run", "--out", "exported"],
        ["evaluate", "run", "--batches", "1", "--json", "evaluated.json"],
        ["evaluate", "run", "--suite", "cloze=cloze.jsonl", "--json", "known.json"],
        ["question", "run", "blocks", "--out", "scores", "--split", "dev", "metrics=random"],
        ["hard-tokens", "export", "scores", "hard.pkl"],
        ["hard-tokens", "import", "hard.pkl", "--blocks", "blocks", "--split", "dev", "--out", "imported"],
    ):
        assert mlpt(words) == 0, words


def _write_damaged() -> None:
    def cut(source: str, target: str, name: str) -> None:
        shutil.copytree(source, target)
        path = Path(target, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    cut("run/model", "cut model", "model.safetensors")
    cut("run", "cut run", "config.yaml")
    cut("blocks", "cut blocks", "manifest.json")
    cut("masks", "cut masks", "masks.safetensors")
    cut("scores", "cut scores", "manifest.json")
    shutil.copytree("run", "unfinished run")
    for name in ("model", "checkpoints"):
        shutil.rmtree(f"unfinished run/{name}")
    Path("cut.npy").write_bytes(Path("heads.npy").read_bytes()[:20])
    np.save("flat.npy", np.ones(3))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("pickle.pt").write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R.")
    Path("text.parquet").write_bytes(b"PAR1 no, it is not")
    Path("broken.jsonl").write_text('{"text": "whole"}\n{"text": \n')
    Path("other.jsonl").write_text('{"words": "no text"}\n')
    Path("broken.yaml").write_text("train: [\n")
    Path("list.yaml").write_text("- train\n")
    Path("typo.yaml").write_text("trian: {}\n")
    Path("latin.yaml").write_bytes("# d\xe9j\xe0 vu\ntrain: {steps: 1}\n".encode("latin-1"))
    Path("wide.yaml").write_text("trian: {}\n", encoding="utf-16")
    Path("deep.yaml").write_text(f"train: {3000 * '['}")
    Path("day.yaml").write_text("name: 2026-02-30\n")
    Path("broken.json").write_text("{")
    Path("space.py").write_text('"""Which?"""\nspace = 3\n')
    Path("leaves.py").write_text('"""Which?"""\nraise SystemExit(3)\n')
    Path("nothing_to_draw.py").write_text(
        '"""Which?"""\nfrom ray import tune\nfrom mlpt.tuning.space import Space\n'
        'parameters = {"train.optimizer.lr": tune.choice([])}\n'
        'space = Space(parameters=parameters, metrics={"dev/mean": "min"}, tokens=1000, trials=1)\n'
    )
    Path("raises.py").write_text('"""Which?"""\n1 / 0\n')
    Path("latin.txt").write_bytes("caf\xe9 au lait\n".encode("latin-1") * 4000)
    Path("link").symlink_to("nowhere")
    Path("circle").symlink_to("circle")
