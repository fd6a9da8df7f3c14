"""The embedded default corpus: the documentation strings of the installed packages and of the standard library.

Real English that every installation has, read with `ast` and never imported. One document is one module's docstrings;
its domain is the package (`python` for the standard library).
"""

import ast
import hashlib
import inspect
import json
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mlpt.errors import UserError
from mlpt.storage.files import cache_directory, readable_errors

LAYOUT = 1  # raise when what is collected, or its order, changes: caches of older layouts are then left alone
SHORTEST = 60  # characters; shorter docstrings ("Return the name.") teach little and repeat much
LARGEST_FILE = 4 << 20  # bytes; larger sources are tables of data
LEAST_SHARE = 0.1  # of a file in triple quotes; parsing is the slow part, and the other files hold little text
_TRIPLE_QUOTED = re.compile(rb'""".*?"""' + rb"|'''.*?'''", re.DOTALL)
_SKIPPED = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "testing",
    "idlelib",
    "lib2to3",
    "_vendor",
}


def collect(max_bytes: int | None = None) -> Path:
    """The corpus as a JSON-lines file (`text`, `domain`, `module`) in the user's cache directory, made on first use.

    With `max_bytes` of text, every package gives a fair share: what small packages leave goes to the larger ones, and
    reading a package stops once its share is filled. The same environment and cap give the same bytes.
    """
    path = cache_directory() / "docs" / f"{_environment()}-{max_bytes or 'all'}.jsonl"
    if path.exists():
        return path
    with readable_errors(str(path), "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        with unfinished.open("w", encoding="utf-8") as out:
            for document in documents(max_bytes):
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
        os.replace(unfinished, path)
    if path.stat().st_size == 0:
        path.unlink()
        raise UserError("the installed packages have no documentation strings (python -OO?); give files of text")
    return path


def documents(max_bytes: int | None = None) -> Iterator[dict[str, str]]:
    """The documents of `collect`, package by package."""
    packages = _packages()
    seen: set[bytes] = set()
    left = max_bytes
    order = sorted(packages, key=lambda name: (_source_bytes(packages[name]), name))  # ascending: leftovers flow up
    for rank, name in enumerate(order):
        share = sys.maxsize if left is None else left // (len(order) - rank)
        used = 0
        for module, texts in _modules(packages[name], seen):
            text = _beginning("\n\n".join(texts), share - used)
            if not text:
                break
            used += len(text.encode())
            yield {"text": text, "domain": name, "module": module}
        if left is not None:
            left = max(0, left - used)


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module's source, its classes' and functions' included, in order, dedented.

    Raises SyntaxError or ValueError for what isn't Python of this version, RecursionError for absurd nesting.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        tree = ast.parse(source)
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text).strip()
        # Definitions stand in bodies of statements; expressions, most of the tree, hold none.
        stack.extend(reversed(list(_statements(node))))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for field in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, field, None)
        if isinstance(children, list):
            yield from children


def _modules(files: list[tuple[str, Path]], seen: set[bytes]) -> Iterator[tuple[str, list[str]]]:
    """(module name, its docstrings) of a package's files, without docstrings seen before."""
    # By the hash of the name: a share that ends early is then spread over the package's parts.
    for module, path in sorted(files, key=lambda one: hashlib.blake2b(one[0].encode(), digest_size=8).digest()):
        fresh: list[str] = []
        for text in _docstrings_of(path):
            key = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=12).digest()
            if len(text) >= SHORTEST and key not in seen:
                seen.add(key)
                fresh.append(text.encode("utf-8", "replace").decode())  # a source can spell half a character
        if fresh:
            yield module, fresh


def _beginning(text: str, most: int) -> str:
    """The whole lines of `text` that fit into `most` bytes of UTF-8."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: raw.rfind(b"\n", 0, most) + 1].decode().strip()


def _docstrings_of(path: Path) -> list[str]:
    """The docstrings of one file; none if it can't be read or parsed (templates, other Python versions, bad links)."""
    try:
        raw = path.read_bytes()
        documented = sum(map(len, _TRIPLE_QUOTED.findall(raw)))
        if len(raw) > LARGEST_FILE or documented < LEAST_SHARE * len(raw):
            return []
        return list(docstrings(raw.decode("utf-8-sig")))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _packages() -> dict[str, list[tuple[str, Path]]]:
    """Files by package: (module name, path), of the standard library and every top-level name of site-packages."""
    packages = {"python": list(_python_files(Path(sysconfig.get_path("stdlib")), ""))}
    for root in map(Path, _site_packages()):
        for entry in sorted(root.iterdir()) if root.is_dir() else []:
            if entry.is_dir() and entry.name.isidentifier() and entry.name not in _SKIPPED:
                packages.setdefault(entry.name, []).extend(_python_files(entry, f"{entry.name}."))
            elif entry.suffix == ".py":
                packages.setdefault(entry.stem, []).append((entry.stem, entry))
    packages.pop("mlpt", None)  # a corpus that changes with every edit of this package would be of no use
    return {name: files for name, files in packages.items() if files}


def _python_files(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(parent, name)
                yield prefix + ".".join(path.relative_to(folder).with_suffix("").parts), path


def _source_bytes(files: list[tuple[str, Path]]) -> int:
    total = 0
    for _, path in files:
        try:
            total += path.stat().st_size
        except OSError:  # a dangling link: it gives no document either
            continue
    return total


def _site_packages() -> list[str]:
    return sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})


def _environment() -> str:
    """A name for what is installed: the Python version and a hash of every distribution's name and version.

    Of the folders that are read, not of `sys.path`: importing ray or setuptools adds their vendored packages there.
    """
    found = {f"{one.metadata['Name']}=={one.version}" for one in metadata.distributions(path=_site_packages())}
    installed = sorted(name for name in found if not name.startswith("mlpt=="))
    digest = hashlib.blake2b("\n".join([sys.prefix, platform.python_version(), *installed]).encode(), digest_size=8)
    return f"{LAYOUT}-{digest.hexdigest()}"
