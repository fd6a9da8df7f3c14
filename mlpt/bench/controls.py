"""Texts of which it is known what learning a mix of them should find: for the studies control_junk and control_null.

    python -m mlpt.bench.controls TEXT TEXT TEXT --out DIR [--megabytes 3] [--seed 0] [--overwrite]

DIR/junk      six domains: the texts themselves (good1, good2, ...), passages with their words in random order
              (shuffled), with every word replaced by another, always the same (recoded: what the ids of another
              tokenizer are), and of the same twenty lines over and over (repeated).
DIR/slices    six random slices of all texts together (slice1 to slice6).
DIR/target    passages of the texts that stand in none of these.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlpt.data.corpora import find_files, plan
from mlpt.data.readers import read_segment
from mlpt.errors import UserError
from mlpt.outputs import new_folder
from mlpt.outputs.kinds import Kind

PASSAGE = 300  # words
TARGET = 20  # every 20th passage is target text
SLICES = 6
LINES, LINE = 20, 15  # of boilerplate: how many, and the words in each

CONTROLS = Kind(
    "texts of controls",
    marks=("junk/shuffled.jsonl",),
    results=("junk/*", "slices/*", "target/*"),
    contents=("junk", "slices", "target"),
)
Texts = dict[str, list[str]]  # passages by the name of their domain


def write_controls(sources: Sequence[str], out: Path, size: int, seed: int = 0) -> dict[str, int]:
    """Write the three folders, and return the passages of each domain.

    size  of each domain before it is garbled, in characters.
    Raises `UserError` where the texts are too short.
    """
    generator = random.Random(seed)
    target: list[str] = []
    kept: list[list[str]] = []
    for source in sources:
        found = list(passages(source))
        generator.shuffle(found)
        target += found[::TARGET]
        kept.append([one for number, one in enumerate(found) if number % TARGET])
    good: Texts = {f"good{number}": take(kept[number - 1], size) for number in range(1, len(sources) + 1)}
    rest = [one for source in kept for one in source]
    generator.shuffle(rest)
    junk: Texts = {
        "shuffled": [shuffled(one, generator) for one in take(rest, size)],
        "recoded": recoded(take(rest, size), generator),
        "repeated": repeated(rest, size, generator),
    }
    everything = [one for texts in good.values() for one in texts] + rest
    generator.shuffle(everything)
    slices: Texts = {f"slice{number}": take(everything, size) for number in range(1, SLICES + 1)}
    for folder, texts in (("junk", good | junk), ("slices", slices), ("target", {"target": target})):
        _write(out / folder, texts)
    return {name: len(texts) for name, texts in (good | junk | slices | {"target": target}).items()}


def passages(source: str) -> Iterator[str]:
    """The passages of a text (a file, a folder, a URI, as data.source), in order, without their line ends."""
    for piece in plan(find_files([source])):
        for segment in piece.segments:
            for document in read_segment(segment):
                words = document.text.split()
                for start in range(0, len(words) - PASSAGE + 1, PASSAGE):
                    yield " ".join(words[start : start + PASSAGE])


def take(texts: list[str], size: int) -> list[str]:
    """Passages off the end of `texts` until they have `size` characters."""
    taken: list[str] = []
    while size > 0:
        if not texts:
            raise UserError("the texts are too short for domains of that size: give more text, or fewer --megabytes")
        taken.append(texts.pop())
        size -= len(taken[-1])
    return taken


def shuffled(text: str, generator: random.Random) -> str:
    """The words of a text in random order."""
    words = text.split()
    generator.shuffle(words)
    return " ".join(words)


def recoded(texts: Sequence[str], generator: random.Random) -> list[str]:
    """Texts with every word replaced by the image of a random permutation of all their words."""
    words = sorted({word for text in texts for word in text.split()})
    code = dict(zip(words, generator.sample(words, len(words)), strict=True))
    return [" ".join(code[word] for word in text.split()) for text in texts]


def repeated(texts: Sequence[str], size: int, generator: random.Random) -> list[str]:
    """Passages of `size` characters in all, each of the same lines (beginnings of some of `texts`) in random order."""
    lines = [" ".join(text.split()[:LINE]) for text in texts[:LINES]]
    made: list[str] = []
    while size > 0:
        made.append(" ".join(generator.sample(lines, len(lines))))
        size -= len(made[-1])
    return made


def _write(folder: Path, texts: Texts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, passages_of in texts.items():
        rows = (json.dumps({"text": one, "domain": name}) + "\n" for one in passages_of)
        (folder / f"{name}.jsonl").write_text("".join(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "texts", nargs="+", metavar="TEXT", help="a file, a folder or a URI of text; three for the study"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--megabytes", type=float, default=3.0, help="of each domain (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace earlier texts of this command")
    given = parser.parse_args(arguments)
    try:
        with new_folder(given.out, CONTROLS, given.overwrite) as folder:
            written = write_controls(given.texts, folder, int(given.megabytes * 1e6), given.seed)
    except UserError as error:
        print(f"mlpt: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {count}" for name, count in written.items()), f"passages in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
