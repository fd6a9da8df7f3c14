"""What travels between rank 0 and the meta-learner's actor arrives bit for bit, and may be written to there."""

import pickle

import pytest
import torch

from mlpt.meta.policy import Answer, Part
from mlpt.runtime.meta_actor import Parcel, _answer_of, _state_of
from mlpt.storage.state import State


def sent(parcel):
    """A parcel as the other process has it: Ray gives it read-only memory."""
    arrived = pickle.loads(pickle.dumps(parcel))
    arrived.flat.buffer.flags.writeable = False
    return arrived


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        assert one.dtype == theirs[name].dtype
        assert torch.equal(one, theirs[name])


def test_a_state_arrives_whole():
    tensors = {"masks/a": torch.randn(3, 2), "masks/b": torch.tensor(3), "none/c": torch.empty(0, 4, dtype=torch.bool)}
    state = State({"mixture": {"scores": [0.1, 1 / 3]}, "masks": {}}, tensors)
    found = sent(Parcel.pack(state)).unpack()
    assert found.values == state.values
    same(found.tensors, tensors)


def test_what_arrived_may_be_written_to(recwarn):
    parcel = sent(Parcel.pack(State({}, {"a": torch.zeros(3)})))
    found = parcel.unpack()
    found.tensors["a"].fill_(1)
    assert parcel.unpack().tensors["a"].tolist() == [0, 0, 0]
    assert not recwarn.list


ANSWERS = {
    "nothing changed": Answer(1, {}, State({"mixture": {"updates": 1}}), {"dev_loss": {"mlm": 0.1}}),
    "a part of values": Answer(2, {"mixture": Part({"mlm": 0.25, "cse": 0.75})}, State({"mixture": {"updates": 2}})),
    "a part of tensors": Answer(
        3,
        {"mixture": Part({"mlm": 1.0}), "masks": Part({"steps": 1}, {"layer.0/scores": torch.randn(4, 4)})},
        State({"masks": {"steps": 1}}, {"masks/exp_avg/layer.0/scores": torch.randn(4, 4).double()}),
        {"mask_changes": 3, "seconds": 0.5},
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_arrives_whole(answer):
    found = _answer_of(sent(Parcel.pack(_state_of(answer))).unpack())
    assert (found.version, found.report) == (answer.version, answer.report)
    assert list(found.parts) == list(answer.parts)
    for name, part in answer.parts.items():
        assert found.parts[name].values == part.values
        same(found.parts[name].tensors, part.tensors)
    assert found.state.values == answer.state.values
    same(found.state.tensors, answer.state.tensors)
