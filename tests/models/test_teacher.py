"""Teacher and student networks (MetaLMO specification 1.3), against PyTorch's own encoder layers and the published
parameter counts; and the student as an architecture that an `Encoder` takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder, load_encoder
from mlpt.models.soft import check_soft_inputs
from mlpt.models.teacher import NetworkConfig, build_student, build_teacher
from mlpt.objectives import make_objectives
from mlpt.settings import load_settings

MOONS = NetworkConfig(hidden_size=8, heads=2, intermediate_size=32, layers=2, positions=34)
TEXT = NetworkConfig()  # the published sizes on text are the defaults


def vocabulary(size=407):
    return Vocabulary(size=size, pad=0, mask=1, sep=2, cls=3, unk=1)


def parameters(network):
    return sum(one.numel() for one in network.parameters())


def tokens(rows=4, length=34, size=407, seed=0):
    drawn = torch.randint(33, size, (rows, length), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0], drawn[:, -1] = 3, 2
    drawn[1, length // 2 :] = 0
    return drawn


def test_parameter_counts_are_the_published_ones():
    assert parameters(build_student(MOONS, vocabulary(), 0)) == 5_783
    assert parameters(build_teacher(MOONS, vocabulary(), 0)) == 12_790
    with torch.device("meta"):
        assert parameters(build_student(TEXT, vocabulary(30_000), 0)) == 12_548_144
        assert parameters(build_teacher(TEXT, vocabulary(30_000), 0)) == 28_004_448


def torch_encoder(trunk, config):
    """The trunk rebuilt of `nn.TransformerEncoderLayer`s, sharing its weights."""
    layers = []
    for ours in trunk.layers:
        theirs = nn.TransformerEncoderLayer(
            config.hidden_size,
            config.heads,
            config.intermediate_size,
            dropout=0.0,
            activation=config.activation,
            batch_first=True,
            norm_first=config.norm == "pre",
        )
        theirs.self_attn.in_proj_weight = ours.attention.in_weight
        theirs.self_attn.in_proj_bias = ours.attention.in_bias
        theirs.self_attn.out_proj = ours.attention.out
        theirs.linear1, theirs.linear2 = ours.inner, ours.outer
        theirs.norm1, theirs.norm2 = ours.attention_norm, ours.norm
        layers.append(theirs.train())  # in training mode PyTorch takes its plain path
    return layers


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_trunk_is_pytorchs_encoder_layers_between_embeddings_and_norm(norm, activation):
    config = MOONS.model_copy(update={"norm": norm, "activation": activation})
    trunk = build_student(config, vocabulary(), 0).eval().trunk
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    ids = tokens()
    states = trunk.tokens.weight[ids] + trunk.positions.weight[torch.arange(34)]
    if norm == "post":
        states = trunk.norm(states)
    for layer in torch_encoder(trunk, config):
        states = layer(states, src_key_padding_mask=ids == 0)
    if norm == "pre":
        states = trunk.norm(states)
    torch.testing.assert_close(trunk(ids, ids != 0)[ids != 0], states[ids != 0], atol=1e-4, rtol=1e-4)


def test_the_student_predicts_through_its_embeddings_and_the_teacher_through_decoders_of_its_own():
    student, teacher = build_student(MOONS, vocabulary(), 0), build_teacher(MOONS, vocabulary(), 0)
    assert student.head.decoder.weight is student.trunk.tokens.weight
    tables = [teacher.trunk.tokens.weight, teacher.head_inputs.decoder.weight, teacher.head_targets.decoder.weight]
    assert len({one.data_ptr() for one in tables}) == 3
    head, states = student.head, torch.randn(5, 8)
    expected = nn.functional.layer_norm(nn.functional.gelu(states @ head.dense.weight.T + head.dense.bias), (8,))
    torch.testing.assert_close(head(states), expected @ student.trunk.tokens.weight.T + head.decoder.bias)


@pytest.mark.parametrize("build", [build_student, build_teacher])
def test_starting_weights_are_the_published_ones(build):
    config = MOONS.model_copy(update={"hidden_size": 64, "intermediate_size": 256, "layers": 1})
    network = build(config, vocabulary(), 0)
    trunk = network.trunk
    assert torch.equal(trunk.tokens.weight[0], torch.zeros(64))
    for weight in (trunk.tokens.weight[1:], trunk.positions.weight, trunk.layers[0].attention.out.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert weight.mean().item() == pytest.approx(0, abs=2e-3)
    # Xavier-uniform of (3 d, d): bound sqrt(6 / (3 d + d)), standard deviation bound / sqrt(3).
    bound = (6 / (4 * 64)) ** 0.5
    projection = trunk.layers[0].attention.in_weight
    assert projection.abs().max() <= bound
    assert projection.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    biases = [one for name, one in network.named_parameters() if name.endswith("bias")]
    assert all(torch.equal(one, torch.zeros_like(one)) for one in biases)


def test_equal_seeds_give_equal_weights_and_leave_the_global_stream_alone():
    state = torch.random.get_rng_state()
    first, second, third = (build_teacher(MOONS, vocabulary(), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(first.trunk.tokens.weight, third.trunk.tokens.weight)


def test_one_hot_distributions_give_what_the_tokens_give():
    student, ids = build_student(MOONS, vocabulary(), 0).eval(), tokens()
    real = ids != 0
    soft = nn.functional.one_hot(ids, 407).float()
    torch.testing.assert_close(student(soft, real)[real], student(ids, real)[real], atol=1e-5, rtol=1e-4)


def test_plain_products_give_what_the_fast_kernels_give():
    ids = tokens()
    fast = build_student(MOONS, vocabulary(), 0).eval()
    plain = build_student(MOONS.model_copy(update={"attention": "eager"}), vocabulary(), 0).eval()
    for real in (None, ids != 0):
        torch.testing.assert_close(plain(ids, real), fast(ids, real))


def test_logits_can_be_had_at_some_positions_alone():
    student, ids = build_student(MOONS, vocabulary(), 0).eval(), tokens()
    at = torch.tensor([[0, 5, 33], [1, 1, 2], [33, 0, 7], [3, 4, 5]])
    expected = torch.stack([row[places] for row, places in zip(student(ids), at, strict=True)])
    torch.testing.assert_close(student(ids, at=at), expected)


def test_what_stands_at_padding_changes_nothing_elsewhere():
    student, ids = build_student(MOONS, vocabulary(), 0).eval(), tokens()
    real = ids != 0
    other = torch.where(real, ids, 99)
    torch.testing.assert_close(student(other, real)[real], student(ids, real)[real])


def test_a_row_of_padding_alone_is_finite():
    student = build_student(MOONS, vocabulary(), 0)
    ids = torch.zeros(2, 34, dtype=torch.int64)
    student(ids, ids != 0).sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in student.parameters())


def test_padding_has_no_mass_unless_it_is_allowed():
    ids = tokens()
    forbidden, allowed = build_teacher(MOONS, vocabulary(), 0), build_teacher(MOONS, vocabulary(), 0, True)
    for one in forbidden(ids):
        shares = one.softmax(-1)
        assert torch.equal(shares[..., 0], torch.zeros(4, 34))
        torch.testing.assert_close(shares.sum(-1), torch.ones(4, 34))
    assert all((one.softmax(-1)[..., 0] > 0).all() for one in allowed(ids))
    # Both train every parameter, without NaN.
    for teacher in (forbidden, allowed):
        sum(one[..., 1:].square().sum() for one in teacher(ids)).backward()
        assert all(torch.isfinite(one.grad).all() for one in teacher.parameters())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="hidden_size 10 is not a multiple of heads 4"):
        load_settings(NetworkConfig, {"hidden_size": 10})


@pytest.fixture(scope="module")
def student_encoder():
    objectives = make_objectives({"mlm": {}, "atd": {}, "cse": {}}, vocabulary())
    sizes = ModelConfig(architecture="metalmo", hidden_size=8, layers=2, heads=2, intermediate_size=32)
    return build_encoder(sizes, vocabulary(), objectives, 34, seed=0)


def test_the_student_is_an_architecture_with_the_same_weights(student_encoder):
    backbone = student_encoder.backbone.eval()
    assert parameters(backbone) == 5_783
    assert torch.equal(backbone.trunk.tokens.weight[0], torch.zeros(8))
    plain = build_student(MOONS, vocabulary(), 5).eval()
    plain.load_state_dict(backbone.state_dict())
    ids = tokens()
    torch.testing.assert_close(backbone(ids, attention_mask=ids != 0).logits, plain(ids, ids != 0))
    check_soft_inputs(backbone, 407)


def test_the_architecture_trains_by_other_objectives_and_comes_back_from_its_folder(student_encoder, tmp_path):
    encoder = student_encoder.train()
    for name, objective in encoder.objectives.items():
        encoder.zero_grad()
        loss = encoder(name, objective.corrupt(Batch.of(tokens()), torch.Generator().manual_seed(0)))
        loss.backward()
        assert loss > 0
        assert encoder.backbone.trunk.layers[0].attention.in_weight.grad.abs().sum() > 0
    encoder.eval().save(tmp_path)
    again = load_encoder(tmp_path, encoder.objectives).eval()
    inputs = encoder.objectives["mlm"].corrupt(Batch.of(tokens()), torch.Generator().manual_seed(0))
    assert torch.equal(again("mlm", inputs), encoder("mlm", inputs))
    # In a process that has built none, too.
    program = f"from mlpt.models.encoder import load_encoder; print(load_encoder({str(tmp_path)!r}, {{}}).config.norm)"
    root = Path(__file__).resolve().parents[2]
    fresh = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == "pre"
    body, ids = AutoModel.from_pretrained(tmp_path).eval(), tokens()
    assert torch.equal(body(ids)[0], encoder.backbone.base_model(ids)[0])
