"""The published file of hard tokens: what real pickles hold, and that nothing in a hostile one runs."""

import builtins
import io
import os
import pickle
import pickletools
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mlpt.data.position_pickle import read_positions, write_positions
from mlpt.errors import UserError

PUBLISHED = {
    0: np.array([1, 5, 9]),
    7: np.array(3),  # the published squeeze of one position
    3: np.array([], dtype=np.int64),
    12: np.array([4]),
    2**40: np.arange(500),
}


def saved(tmp_path, value, protocol=4):
    path = tmp_path / "token_masks_merge.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))
    return path


def same(found, expected):
    assert list(found) == list(expected)
    for key, positions in expected.items():
        assert type(key) is int
        assert found[key].dtype == np.int64
        assert found[key].shape == np.shape(positions)
        assert np.array_equal(found[key], positions)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_wrote_is_read_by_every_protocol(tmp_path, protocol):
    same(read_positions([saved(tmp_path, PUBLISHED, protocol)]), PUBLISHED)


def test_the_python_written_pickler_is_read_too(tmp_path):
    sink = io.BytesIO()
    pickle._Pickler(sink, 2).dump(PUBLISHED)
    same(read_positions([saved(tmp_path, sink.getvalue())]), PUBLISHED)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", ">i8", "uint64"])
def test_integers_of_any_size_and_byte_order_are_read(tmp_path, dtype):
    value = {1: np.array([3, 100], dtype=dtype)}
    same(read_positions([saved(tmp_path, value)]), {1: np.array([3, 100])})


def test_old_module_names_are_known(tmp_path):
    """Files of 2021 name numpy.core, those of today numpy._core."""
    today = pickle.dumps(PUBLISHED, protocol=2)
    assert b"numpy._core" in today
    same(read_positions([saved(tmp_path, today.replace(b"numpy._core", b"numpy.core"))]), PUBLISHED)


def test_several_files_are_merged_the_later_over_the_earlier(tmp_path):
    files = []
    for rank, value in enumerate(
        [{0: np.array([1, 2]), 1: np.array([5, 6])}, {1: np.array([7, 8]), 2: np.array([9, 9])}]
    ):
        (tmp_path / str(rank)).mkdir()
        files.append(saved(tmp_path / str(rank), value))
    same(read_positions(files), {0: np.array([1, 2]), 1: np.array([7, 8]), 2: np.array([9, 9])})


@pytest.mark.parametrize(("single", "shape"), [("array", (1,)), ("published", ())])
def test_what_is_written_python_reads_and_so_do_we(tmp_path, single, shape):
    path = tmp_path / "masks.pkl"
    assert write_positions(((key, np.atleast_1d(value)) for key, value in PUBLISHED.items()), path, single) == 5
    expected = {key: np.reshape(value, shape) if np.size(value) == 1 else value for key, value in PUBLISHED.items()}
    same(pickle.loads(path.read_bytes()), expected)
    same(read_positions([path]), expected)
    assert os.listdir(path.parent) == ["masks.pkl"], "nothing half-written is left"


def test_what_is_written_names_the_modules_of_2021_and_needs_only_protocol_3(tmp_path):
    path = tmp_path / "masks.pkl"
    write_positions(PUBLISHED.items(), path)
    opcodes = list(pickletools.genops(path.read_bytes()))
    names = {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert max(opcode.proto for opcode, _, _ in opcodes) <= 3


@examples(max_examples=60, deadline=None)
@given(
    value=st.dictionaries(
        st.integers(0, 2**40),
        st.lists(st.integers(0, 2**31), max_size=300).map(lambda one: np.array(one, dtype=np.int64)),
    ),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_dictionary_comes_back(tmp_path_factory, value, protocol):
    folder = tmp_path_factory.mktemp("any")
    same(read_positions([saved(folder, value, protocol)]), value)
    write_positions(value.items(), folder / "ours.pkl")
    same(pickle.loads((folder / "ours.pkl").read_bytes()), value)


# ---------------------------------------------------------------- hostile and wrong files


class Runs:
    """Unpickled, it calls what it is told to."""

    def __init__(self, function, *arguments):
        self.how = (function, arguments)

    def __reduce__(self):
        return self.how


def touched(tmp_path):
    return tmp_path / "touched"


def attack(tmp_path, name):
    """Pickles that do something when Python reads them; each would leave `touched`, or worse."""
    path = str(touched(tmp_path))
    command = f"touch {path}"
    attacks = {
        "os.system": {0: Runs(os.system, command)},
        "eval": {0: Runs(builtins.eval, f"open({path!r}, 'w')")},
        "as a key": {Runs(os.system, command): np.array([1, 2])},
        "before the dictionary": [Runs(os.system, command), {0: np.array([1, 2])}],
        "inside an array's state": b"\x80\x02}K\x00cnumpy.core.multiarray\n_reconstruct\n"
        b"(cnumpy\nndarray\n(K\x00tC\x01btR"
        b"cposix\nsystem\n(X" + struct.pack("<I", len(command)) + command.encode() + b"tRbs.",
        "an object array": {0: np.array([Runs(os.system, command)], dtype=object)},
        "numpy's own loader": b"cnumpy\nload\n(X" + struct.pack("<I", len(path)) + path.encode() + b"I01\ntR.",
        "an attribute of an allowed module": b"\x80\x04\x8c\x05numpy\x8c\x0elib.npyio.load\x93.",
        "through getattr": b"c__builtin__\ngetattr\n(cnumpy\nndarray\nX\x06\x00\x00\x00tofiletR.",
        "an instance": b"(iposix\nsystem\n.",
        "an object": b"(cposix\nsystem\nX\x02\x00\x00\x00lso.",
        "a new object": b"\x80\x02cposix\nsystem\n)\x81.",
        "a persistent id": b"Pidentity\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "codecs with another codec": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    }
    return saved(tmp_path, attacks[name], 2)


ATTACKS = [
    *("os.system", "eval", "as a key", "before the dictionary", "inside an array's state", "an object array"),
    *("numpy's own loader", "an attribute of an allowed module", "through getattr", "an instance", "an object"),
    *("a new object", "a persistent id", "an extension", "codecs with another codec"),
]


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_in_a_hostile_file_runs(tmp_path, name):
    with pytest.raises(UserError, match="is refused: it holds") as error:
        read_positions([attack(tmp_path, name)])
    assert "\n" not in str(error.value)
    assert not touched(tmp_path).exists()


def test_the_attacks_are_real(tmp_path):
    """The same file does run where Python's own reader opens it."""
    pickle.loads(attack(tmp_path, "os.system").read_bytes())
    assert touched(tmp_path).exists()


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ({0: [1, 2]}, "the opcode"),
        ({0: 5}, "a value that is no array"),
        ({0: None}, "a value that is no array"),
        ({0: "positions"}, "a value that is no array"),
        ({"0": np.array([1, 2])}, "a key that is no block index"),
        ({True: np.array([1, 2])}, "a key that is no block index"),
        ({(1, 2): np.array([1, 2])}, "a key that is no block index"),
        ({2**70: np.array([1, 2])}, "a key that is no block index"),
        ({0: np.array([0.5, 1.5])}, "an array of type f8"),
        ({0: np.array([True, False])}, "an array of type b1"),
        ({0: np.array(["a", "b"])}, "an array of type U1"),
        ({0: np.array([1 + 2j])}, "an array of type c16"),
        ({0: np.array([[1, 2], [3, 4]])}, "an array of several dimensions"),
        ({0: np.zeros(2, dtype=[("a", "i8")])}, "an array of type V8"),
        ({0: np.array([2**64 - 1], dtype=np.uint64)}, "a number above"),
        ({0: {1: np.array([1, 2])}}, "a second dictionary"),
        ([np.array([1, 2])], "the opcode"),
        (np.array([1, 2]), "something other than a dictionary"),
        (5, "something other than a dictionary"),
        (Fraction(1, 2), "the name fractions.Fraction"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_anything_but_integers_is_refused(tmp_path, value, held, protocol):
    with pytest.raises(UserError, match=held) as error:
        read_positions([saved(tmp_path, value, protocol)])
    assert "\n" not in str(error.value)


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    """A shape larger than its bytes would otherwise read past them."""
    whole = pickle.dumps({0: np.array([1, 2])}, protocol=3)
    assert whole.count(b"K\x01K\x02\x85") == 1  # state: version 1, shape (2,)
    for shape in (b"K\x01K\x03\x85", b"K\x01K\xff\x85", b"K\x01J\xfe\xff\xff\xff\x85", b"K\x01)"):
        with pytest.raises(UserError, match="an array whose size is not its shape's"):
            read_positions([saved(tmp_path, whole.replace(b"K\x01K\x02\x85", shape))])


def nested_tuples(depth):
    """2 ** depth elements in a few bytes: each tuple holds the one before it twice."""
    pickled = b"\x80\x02)q\x00"
    for level in range(depth):
        pickled += b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return pickled


@pytest.mark.parametrize(
    "tail",
    [b".", b"}" + b"h\x60" + b"K\x00s.", b"cnumpy\ndtype\nh\x60\x85R.", b"}K\x00h\x60s.", b"c_codecs\nencode\nh\x60R."],
    ids=["alone", "a key", "a type", "a value", "arguments"],
)
def test_a_pickle_bomb_is_refused_at_once(tmp_path, tail):
    with pytest.raises(UserError) as error:
        read_positions([saved(tmp_path, nested_tuples(0x60) + tail)])
    assert len(str(error.value)) < 400


def test_a_length_that_is_not_there_takes_no_memory(tmp_path):
    for claim in (b"\x80\x04\x8e" + struct.pack("<Q", 2**50), b"\x80\x03B" + struct.pack("<I", 2**31)):
        with pytest.raises(UserError, match="damaged or no pickle"):
            read_positions([saved(tmp_path, claim + b"abc")])


@pytest.mark.parametrize(
    "content", [b"\x80", b"not a pickle", b"\x00" * 100, b"(((((", b"}.."[:1], b"0.", b"s.", b"b."]
)
def test_damaged_files_are_one_line(tmp_path, content):
    with pytest.raises(UserError, match=r"damaged or no pickle|is refused") as error:
        read_positions([saved(tmp_path, content)])
    assert "\n" not in str(error.value)


def test_an_empty_file_and_no_file_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        read_positions([saved(tmp_path, b"")])
    with pytest.raises(UserError, match="there is no such file"):
        read_positions([tmp_path / "nowhere.pkl"])


def test_a_truncated_file_is_one_line(tmp_path):
    whole = pickle.dumps(PUBLISHED, protocol=4)
    for length in range(1, len(whole), 7):
        with pytest.raises(UserError):
            read_positions([saved(tmp_path, whole[:length])])


def test_a_name_of_two_lines_is_refused_in_one(tmp_path):
    with pytest.raises(UserError, match=r"it holds the name a b\.c, ") as refused:
        read_positions([saved(tmp_path, b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.")])
    assert "\n" not in str(refused.value)


@examples(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_give_numbers_or_one_line(tmp_path_factory, data):
    whole = pickle.dumps({0: np.array([1, 2]), 1: np.array(3)}, protocol=data.draw(st.sampled_from([0, 2, 3, 4, 5])))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = saved(tmp_path_factory.mktemp("any"), bytes(content))
    try:
        found = read_positions([path])
    except UserError as error:
        found, said = {}, str(error)
    else:
        said = ""
    assert "\n" not in said
    assert all(type(key) is int and value.dtype == np.int64 for key, value in found.items())
