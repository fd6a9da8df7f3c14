"""The tutorials do what they say: their commands and their Python, one after another, on little text."""

import os
import re
import shlex
from pathlib import Path

import pytest

from mlpt.cli import run

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))

# Fewer steps of smaller batches in this process, on blocks as long as the small model has positions for.
LESS = [
    *("train.batch_size=4", "train.evaluate_batches=1", "train.schedule.warmup=2", "train.log_every=1"),
    *("runtime.num_workers=0", "report.tensorboard=false", "report.progress=off"),
]
SMALLER = ["model.hidden_size=32", "model.layers=1", "model.heads=2", "data.block_size=32", "data.vocab_size=512"]


def texts(folder: Path) -> None:
    """What the tutorials say lies in the folder."""
    documents = re.split(r"\n## ", (ROOT / "docs/DECISIONS.md").read_text() + (ROOT / "README.md").read_text())
    lines = [line for text in documents for line in text.splitlines() if len(line) > 40]
    for name in ("corpus", "contracts"):
        (folder / name).mkdir()
        for number in range(60):
            (folder / name / f"{number}.txt").write_text(f"{name} {number}: " + " ".join(lines[number : number + 20]))
    for name in ("code", "reviews"):
        rows = [f'{{"text": "{name} {at} {re.sub(r"[^a-z ]", "", line)}"}}' for at, line in enumerate(lines)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (mood,) = re.findall(r"```yaml\n(name: mood.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (folder / "mood.yaml").write_text(mood)
    for split in ("train", "dev"):
        (folder / f"mood_{split}.csv").write_text("text,mood\nfine,good\nwet,bad\nsunny,good\ncold,bad\n")


# What a tutorial says, and what the test says instead.
INSTEAD = {
    r"train\.steps=(\d)\d*": r"train.steps=\1",
    r"train\.evaluate_every=\d+": "train.evaluate_every=1",
    r"vocab_size=\d+": "vocab_size=512",
    r"((?:data\.)?block_size)=\d+": r"\1=32",
}


def shrunk(words: list[str]) -> list[str]:
    """The same command with less to do."""
    less = words
    for said, instead in INSTEAD.items():
        less = [re.sub(f"^{said}$", instead, word) for word in less]
    if words[0] != "pretrain":
        return less
    if "--resume" in words:
        return [*less, "runtime.num_workers=0"]
    if any(word.startswith("model.pretrained=") for word in words):
        return [*less, *LESS]
    return [*less, *LESS, *(word for word in SMALLER if "data.source=blocks" not in words or "data." not in word)]


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    done = 0
    for language, block in re.findall(
        r"^```(bash|python)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for line in block.splitlines():
            words = shlex.split(line, comments=True)[1:]
            if words:
                assert run(shrunk(words)) == 0, f"{line}: {capfd.readouterr().err[-500:]}"
                done += 1
    assert done > 2
    assert os.listdir(tmp_path / "runs")
