"""State of many things in one, and its tensors in one buffer: nothing is lost on the way, not a bit."""

import json
import pickle

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpt.storage.state import Flat, State

STATES = {
    "mixture": State({"scores": [1.0, 0.1], "before": None}),
    "masks": State(
        {"steps": 3}, {"exp_avg/layer.0.scores": torch.ones(2, 3), "exp_avg_sq/layer.0.scores": torch.ones(6)}
    ),
    "mask": State({}, {"a": torch.zeros(1)}),  # the beginning of another's name
    "nothing": State(),
}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def assert_same(state, other):
    assert dict(state.values) == dict(other.values)
    assert state.tensors.keys() == other.tensors.keys()
    for name, one in state.tensors.items():
        assert torch.equal(one, other.tensors[name])


def test_each_part_comes_out_of_the_joined_state_as_it_went_in():
    joined = State.join(STATES)
    assert joined.tensors.keys() == {f"masks/{key}/layer.0.scores" for key in ("exp_avg", "exp_avg_sq")} | {"mask/a"}
    for name, state in STATES.items():
        assert_same(joined.part(name), state)
    assert_same(joined.part("absent"), State())


def test_joined_states_can_be_joined_again():
    outer = State.join({"learner": State.join(STATES), "policy": State({"version": 2})})
    assert outer.part("policy").values == {"version": 2}
    for name, state in STATES.items():
        assert_same(outer.part("learner").part(name), state)


def test_the_values_of_a_joined_state_survive_json():
    joined = State.join(STATES)
    assert json.loads(json.dumps(joined.values)) == joined.values


def test_a_state_is_true_where_it_holds_something():
    assert not State()
    assert State({"a": None})
    assert State({}, {"a": torch.zeros(0)})


def tensor_of(dtype, shape):
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(len(shape)))
    random = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (random * 3).to(dtype) if dtype.is_floating_point or dtype.is_complex else values.to(dtype)


def bytes_of(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def test_tensors_of_all_kinds_and_shapes_come_back_bit_for_bit_and_in_order():
    shapes = [(), (0,), (1,), (3,), (2, 0, 4), (5, 7), (2, 3, 4, 1)]
    tensors = {f"{dtype}/{shape}": tensor_of(dtype, shape) for shape in shapes for dtype in DTYPES}
    tensors["nan"] = torch.tensor([float("nan"), float("-inf"), -0.0])
    tensors["not contiguous"] = torch.arange(12.0).view(3, 4).t()
    tensors["expanded"] = torch.tensor(2.5).expand(4, 2)
    found = Flat.pack(tensors).unpack()
    assert list(found) == list(tensors)
    for name, one in tensors.items():
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape), name
        assert torch.equal(bytes_of(found[name]), bytes_of(one)), name


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6))
def test_any_mixture_of_tensors_goes_through_one_buffer(kinds):
    tensors = {str(index): tensor_of(dtype, tuple(shape)) for index, (dtype, shape) in enumerate(kinds)}
    flat = Flat.pack(tensors)
    assert flat.buffer.dtype == np.uint8
    found = flat.unpack()
    assert found.keys() == tensors.keys()
    for name, one in tensors.items():
        assert found[name].dtype == one.dtype
        assert torch.equal(found[name], one)


def test_every_tensor_begins_at_a_multiple_of_64_bytes():
    tensors = {str(n): torch.ones(n, dtype=torch.uint8) for n in (1, 63, 64, 65, 130)}
    found = Flat.pack(tensors).unpack()
    base = found["1"].data_ptr()
    assert [(one.data_ptr() - base) % 64 for one in found.values()] == [0] * 5


def test_packing_copies_and_unpacking_does_not():
    ours = torch.ones(3, requires_grad=True)
    flat = Flat.pack({"a": ours})
    with torch.no_grad():
        ours.fill_(7)
    first = flat.unpack()["a"]
    assert first.tolist() == [1, 1, 1]
    assert not first.requires_grad
    first.fill_(2)
    assert flat.unpack()["a"].tolist() == [2, 2, 2]


def test_a_buffer_that_travelled_is_read_without_a_warning(recwarn):
    tensors = {"a": torch.arange(5), "b": torch.tensor(True)}
    sent = pickle.loads(pickle.dumps(Flat.pack(tensors)))
    sent.buffer.flags.writeable = False  # as Ray hands it out
    found = sent.unpack()
    assert all(torch.equal(found[name], one) for name, one in tensors.items())
    assert not recwarn.list


def test_nothing_is_packed_as_nothing():
    flat = Flat.pack({})
    assert flat.buffer.size == 0
    assert flat.unpack() == {}
