"""What was prepared, in lines for people."""

from mlpt.data.corpora import SPLITS
from mlpt.data.manifest import InputEntry, Manifest

_DOCUMENTS = {
    "file": "each a document",
    "line": "each line a document",
    "blank": "documents between blank lines",
    "heading": "articles by their titles",
    "bare heading": "articles by their titles",
    "row": "each row a document",
}


def describe(manifest: Manifest, blocks: str) -> str:
    """What was read, where that is known, and what the blocks are: a line each."""
    rows = ", ".join(f"{split} {manifest.splits[split].rows:,}" for split in SPLITS)
    tokens = sum(entry.tokens for entry in manifest.splits.values())
    unknown = f" ({manifest.unknown_share:.2%} unknown)" if manifest.unknown_share else ""
    how = "found" if manifest.reused else "made"
    size = manifest.vocabulary["size"]
    made = (
        f"blocks of {manifest.block_size} tokens ({how}): {rows}; {tokens:,} tokens{unknown}, vocabulary {size:,}; "
        f"in {blocks}"
    )
    return made if manifest.input is None else f"{_read(manifest, manifest.input)}\n{made}"


def _read(manifest: Manifest, read: InputEntry) -> str:
    """One line: files and what a document of theirs is, how many there are, and what was left out."""
    files = "; ".join(f"{_count(number, 'file')}, {_DOCUMENTS[style]}" for style, number in read.files.items())
    documents = _count(sum(entry.documents for entry in manifest.splits.values()), "document")
    if "file" in read.files and manifest.settings.get("documents") == "auto":
        documents += " (documents=blank or documents=lines cuts them)"
    skipped = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(read.skipped.items()))
    parts = [
        f"text: {files}: {documents}",
        *([f"{read.repeated:,} left out that dev or test has too"] if read.repeated else []),
        *([f"skipped {skipped}"] if skipped else []),
    ]
    return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
