"""Pointing at words inside a text with `*`, as MetaLMO's SuperGLUE formats do (WiC, WSC, ReCoRD)."""

import re
from collections.abc import Iterable


def insert_stars(text: str, at: Iterable[int]) -> str:
    """`text` with a `*` before each of the character indices (ascending order is made here): "abcdef", [1, 3] gives
    "a*bc*def"; an index given twice gets two."""
    pieces, last = [], 0
    for index in sorted(at):
        pieces.append(text[last:index])
        last = index
    return "*".join([*pieces, text[last:]])


def through_stars(span: tuple[int, int], at: Iterable[int]) -> tuple[int, int]:
    """Where characters (start, exclusive end) of a text stand once `insert_stars` has put stars `at` its indices."""
    places = list(at)
    start, last = (place + sum(star <= place for star in places) for place in (span[0], span[1] - 1))
    return start, last + 1


def find_span(text: str, span: str, token: int) -> tuple[int, int]:
    """Characters (start, exclusive end) of `span`, said to begin at the `token`-th whitespace token of `text`.

    If the text from there does not start with the span (case aside), the tokens from there on whose letters and digits
    are words of the span are collected, each word once; the answer reaches from the first to the last of them.
    (0, 0) where nothing is found.
    """
    words = [(found.start(), found.end()) for found in re.finditer(r"\S+", text)]
    if not 0 <= token < len(words):
        return 0, 0
    start = words[token][0]
    if text[start : start + len(span)].lower() == span.lower():
        return start, start + len(span)
    wanted = {_plain(word) for word in span.split()}
    taken = []
    for begin, end in words[token:]:
        plain = _plain(text[begin:end])
        if plain in wanted:
            wanted.discard(plain)
            taken.append((begin, end))
    return (taken[0][0], taken[-1][1]) if taken else (0, 0)


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())
