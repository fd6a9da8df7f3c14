"""What is loaded begins where torch would have allocated it, so that the same products come of it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.conditional.encoder import load_stock
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.storage.checkpoint import Checkpoints
from mlpt.storage.memory import ALIGNMENT, align_weights, aligned


def begins(tensor):
    return tensor.data_ptr() % ALIGNMENT


def all_aligned(model):
    return all(begins(one) == 0 for one in (*model.parameters(), *model.buffers()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model whose file has its tensors at places that are no multiples of `ALIGNMENT`."""
    folder = tmp_path_factory.mktemp("saved")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=101, **sizes))
    model.save_pretrained(folder)
    tensors = {name: one for name, one in model.state_dict().items() if "predictions.decoder" not in name}  # tied
    for length in range(1, 17):  # of the header, which is padded to 8 bytes
        save_file(tensors, folder / "model.safetensors", {"format": "pt", "pad": "x" * 4 * length})
        if not all_aligned(AutoModelForMaskedLM.from_pretrained(folder)):
            return folder
    raise AssertionError("every file's tensors began at whole registers")


def test_a_tensor_that_begins_anywhere_is_copied_and_another_is_left_alone():
    buffer = torch.arange(100.0)
    assert aligned(buffer) is buffer
    assert aligned(buffer[16:]).data_ptr() == buffer[16:].data_ptr()
    moved = aligned(buffer[3:7])
    assert begins(moved) == 0
    assert torch.equal(moved, buffer[3:7])


def test_the_weights_of_a_model_are_moved_and_tied_ones_stay_tied():
    buffer = torch.randn(65)
    model = nn.ModuleDict({"one": nn.Linear(8, 8, bias=False), "two": nn.Linear(8, 8, bias=False)})
    model["one"].weight.data = buffer[1:].view(8, 8)
    model["two"].weight = model["one"].weight
    weight = model["one"].weight
    align_weights(model)
    assert all_aligned(model)
    assert torch.equal(weight.reshape(-1), buffer[1:])
    assert model["one"].weight is weight is model["two"].weight


def test_checkpoints_and_saved_models_come_aligned(saved, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    tensors = {f"a{length}": torch.randn(length) for length in range(1, 30)}
    checkpoints.save(1, {}, {"learner": tensors})
    checkpoints.wait()
    found = checkpoints.load(1).tensors["learner"]
    assert {name: begins(one) for name, one in found.items()} == dict.fromkeys(tensors, 0)
    assert all(torch.equal(found[name], one) for name, one in tensors.items())
    vocabulary = Vocabulary(size=101, pad=0, mask=4, cls=2, sep=3, unk=1)
    objectives = make_objectives({"mlm": {}}, vocabulary)
    assert all_aligned(build_encoder(ModelConfig(pretrained=str(saved)), vocabulary, objectives, 16, seed=0))
    assert all_aligned(load_stock(saved))
