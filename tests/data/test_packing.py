"""Packing loses nothing, pads nothing, and knows where documents begin."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpt.data.packing import Layout, Stream, pack_documents, pack_full, pack_windows

CLS, SEP, PAD = 1, 2, 0
LAYOUT = Layout(block_size=6, cls=CLS, sep=SEP, pad=PAD)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint16)


def test_documents_are_laid_end_to_end_in_framed_blocks() -> None:
    stream = Stream.of([ids(10, 11), ids(20, 21, 22, 23, 24), ids(30)], [7, 8, 9], SEP)
    packed, rest = pack_full(stream, LAYOUT)
    assert packed.tokens.tolist() == [[CLS, 10, 11, SEP, 20, SEP], [CLS, 21, 22, 23, 24, SEP]]
    assert packed.document.tolist() == [7, 8]
    assert packed.boundaries.tolist() == [1, 4]
    assert packed.offsets.tolist() == [0, 2, 2]
    assert rest.ids.tolist() == [SEP, 30, SEP]
    assert (rest.opening, rest.starts.tolist(), rest.documents.tolist()) == (8, [1], [9])


def test_the_rest_goes_on_in_the_next_block() -> None:
    _, rest = pack_full(Stream.of([ids(10, 11, 12, 13, 14, 15)], [3], SEP), LAYOUT)
    packed, rest = pack_full(rest.then(Stream.of([ids(20, 21)], [4], SEP)), LAYOUT)
    assert packed.tokens.tolist() == [[CLS, 14, 15, SEP, 20, SEP]]
    assert (packed.document.tolist(), packed.boundaries.tolist()) == ([3], [4])
    assert (rest.ids.tolist(), rest.opening) == ([21, SEP], 4)


def test_the_rests_of_two_streams_join_with_a_boundary_between() -> None:
    _, first = pack_full(Stream.of([ids(*range(10, 15))], [0], SEP), LAYOUT)
    _, second = pack_full(Stream.of([ids(*range(20, 25))], [1], SEP), LAYOUT)
    packed, _ = pack_full(first.then(second), LAYOUT)
    assert packed.tokens.tolist() == [[CLS, 14, SEP, 24, SEP, SEP]]
    assert packed.boundaries.tolist() == [3]


def test_one_document_a_block_is_cut_and_padded() -> None:
    packed = pack_documents([ids(10), ids(20, 21, 22, 23, 24, 25), ids(30, 31, 32, 33)], [0, 1, 2], LAYOUT)
    assert packed.tokens.tolist() == [
        [CLS, 10, SEP, PAD, PAD, PAD],
        [CLS, 20, 21, 22, 23, SEP],
        [CLS, 30, 31, 32, 33, SEP],
    ]
    assert packed.boundaries.tolist() == [1, 1, 1]
    assert packed.document.tolist() == [0, 1, 2]


def test_documents_in_windows_lose_nothing_and_share_no_block() -> None:
    documents = [ids(10), ids(20, 21, 22, 23, 24, 25, 26, 27, 28), ids(30, 31, 32, 33)]
    packed = pack_windows(documents, [7, 8, 9], LAYOUT)
    assert packed.tokens.tolist() == [
        [CLS, 10, SEP, PAD, PAD, PAD],
        [CLS, 20, 21, 22, 23, SEP],
        [CLS, 24, 25, 26, 27, SEP],
        [CLS, 28, SEP, PAD, PAD, PAD],
        [CLS, 30, 31, 32, 33, SEP],
    ]
    assert packed.document.tolist() == [7, 8, 8, 8, 9]
    begins = [packed.boundaries[packed.offsets[n] : packed.offsets[n + 1]].tolist() for n in range(5)]
    assert begins == [[1], [1], [], [], [1]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=3),
    block_size=st.integers(4, 12),
)
def test_a_stream_in_parts_packs_as_the_plain_loop_says(lengths: list[int], cuts: list[int], block_size: int) -> None:
    layout = Layout(block_size, CLS, SEP, PAD)
    documents = [ids(*range(100 * number + 10, 100 * number + 10 + n)) for number, n in enumerate(lengths)]

    # An independent packing, token by token.
    flat, owner, begins = [], [], []
    for number, document in enumerate(documents):
        for place, token in enumerate([*document.tolist(), SEP]):
            flat.append(token)
            owner.append(number)
            begins.append(place == 0)
    payload = block_size - 2
    n = len(flat) // payload
    blocks = [[CLS, *flat[i * payload : (i + 1) * payload], SEP] for i in range(n)]
    boundaries = [[p + 1 for p in range(payload) if begins[i * payload + p]] for i in range(n)]

    edges = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    tokens, document, found = [], [], []
    rest = None
    for start, stop in itertools.pairwise(edges):
        part = Stream.of(documents[start:stop], range(start, stop), SEP)
        packed, rest = pack_full(part if rest is None else rest.then(part), layout)
        tokens += packed.tokens.tolist()
        document += packed.document.tolist()
        found += [packed.boundaries[packed.offsets[i] : packed.offsets[i + 1]].tolist() for i in range(len(packed))]
    assert tokens == blocks
    assert document == [owner[i * payload] for i in range(n)]
    assert found == boundaries
