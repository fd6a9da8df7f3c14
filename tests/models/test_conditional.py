"""The conditional modules against the vectors that were observed in CA-MTL's own code (specification 2.11)."""

import pytest
import torch
from torch import nn

from mlpt.models.conditional.modules import BlockDiagonalBias, ConditionalBottleneck, ConditionalLayerNorm, FiLM

WEIGHT = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
CONDITION = torch.tensor([[1.0, 2.0]])


def with_known_modulation(film: FiLM) -> FiLM:
    film.modulation.weight.data = WEIGHT.clone()
    film.modulation.bias.data.zero_()
    return film


def known_bias(hidden_size: int, max_length: int) -> BlockDiagonalBias:
    """A bias whose modulation reads a condition of two features, as in the vectors."""
    bias = BlockDiagonalBias(hidden_size, max_length)
    bias.film = with_known_modulation(FiLM(2, bias.width))
    return bias


def test_film_gives_the_published_numbers():
    film = with_known_modulation(FiLM(2, 2))
    out = film(CONDITION, torch.tensor([[[1.0, -1.0], [2.0, 3.0]]]))
    torch.testing.assert_close(out, torch.tensor([[[3.2, 0.2], [4.7, 8.6]]]))


def test_the_attention_bias_gives_the_published_matrix():
    bias = known_bias(8, 4)
    bias.matrix.data = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    expected = [[3.2, 6.5, 0, 0], [6.2, 10.7, 0, 0], [0, 0, 9.2, 14.9], [0, 0, 12.2, 19.1]]
    torch.testing.assert_close(bias(CONDITION), torch.tensor([expected]))


def test_a_zero_matrix_leaves_beta_in_every_row_of_a_block():
    out = known_bias(8, 4)(CONDITION)[0]
    for row, block in enumerate([0, 0, 2, 2]):
        torch.testing.assert_close(out[row, block : block + 2], torch.tensor([1.7, 2.3]))


@pytest.mark.parametrize(
    ("hidden_size", "length", "width", "blocks", "density"),
    [(768, 128, 22, 6, 0.1675), (768, 64, 6, 11, 0.0918), (768, 256, 86, 3, 0.3334), (1024, 128, 16, 8, 0.125)],
)
def test_blocks_have_the_published_shapes(hidden_size, length, width, blocks, density):
    bias = BlockDiagonalBias(hidden_size, length)
    bias.film.modulation.bias.data.fill_(1.0)  # so that nothing inside a block is zero
    out = bias(torch.zeros(1, hidden_size))
    assert out.shape == (1, length, length)
    assert bias.matrix.shape == (length, width)
    filled = (out[0] != 0).float()
    assert filled.mean().item() == pytest.approx(density, abs=5e-5)
    assert len({tuple(row.tolist()) for row in filled}) == blocks


def test_a_shorter_input_sees_the_corner_of_the_full_bias():
    bias = BlockDiagonalBias(24, 12)
    bias.matrix.data.normal_()
    condition = torch.randn(3, 24)
    torch.testing.assert_close(bias(condition, 7), bias(condition)[:, :7, :7])


def test_the_block_diagonal_agrees_with_torch_block_diag():
    bias = BlockDiagonalBias(36, 12)  # 3 blocks of 4
    bias.matrix.data.normal_()
    condition = torch.randn(1, 36)
    chunks = bias.film(condition, bias.matrix)[0].split(bias.width)
    torch.testing.assert_close(bias(condition)[0], torch.block_diag(*chunks)[:, :12])


def test_a_width_that_the_length_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple"):
        BlockDiagonalBias(100, 64)


def known_norm(shift: bool) -> ConditionalLayerNorm:
    norm = ConditionalLayerNorm(2, 2, shift=shift)
    norm.film = with_known_modulation(FiLM(2, 2))
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5])
    return norm


@pytest.mark.parametrize(("condition", "expected"), [([1.0, 2.0], [-2.7, 6.0]), ([0.0, 0.0], [-0.5, 1.5])])
def test_the_published_norm_conditions_the_scale_only(condition, expected):
    out = known_norm(shift=False)(torch.tensor([[[1.0, 3.0]]]), torch.tensor([condition]))
    torch.testing.assert_close(out, torch.tensor([[expected]]))


def test_the_papers_norm_conditions_scale_and_shift():
    # gamma = [.5, 1.1], beta = [1.7, 2.3]; plain layer norm gives [-.5, 1.5]
    out = known_norm(shift=True)(torch.tensor([[[1.0, 3.0]]]), CONDITION)
    torch.testing.assert_close(out, torch.tensor([[[1.5 * -0.5 + 1.7, 2.1 * 1.5 + 2.3]]]))


@pytest.mark.parametrize("shift", [False, True])
def test_each_norm_is_the_layer_norm_with_the_scale_and_the_shift_that_the_page_states(shift):
    norm = ConditionalLayerNorm(6, 4, shift=shift)
    norm.weight.data.normal_(), norm.bias.data.normal_()
    x, condition = torch.randn(3, 5, 6), torch.randn(3, 4)
    gamma, beta = norm.film.modulation(condition).chunk(2, dim=-1)
    scale = (1 + gamma) * norm.weight if shift else (1 + gamma) * norm.weight + beta
    moved = (1 + gamma) * norm.bias + beta if shift else norm.bias.expand(3, 6)
    rows = [nn.functional.layer_norm(x[n], (6,), scale[n], moved[n], norm.eps) for n in range(3)]
    torch.testing.assert_close(norm(x, condition), torch.stack(rows))


@pytest.mark.parametrize("shift", [False, True])
def test_without_modulation_each_norm_is_the_pretrained_one(shift):
    norm = ConditionalLayerNorm(6, 4, shift=shift)
    norm.weight.data.normal_(), norm.bias.data.normal_()
    norm.film.modulation.weight.data.zero_(), norm.film.modulation.bias.data.zero_()
    x = torch.randn(3, 5, 6)
    stock = nn.functional.layer_norm(x, (6,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x, torch.randn(3, 4)), stock)


def test_with_task_ids_rows_of_a_task_share_the_first_rows_condition():
    norm = known_norm(shift=False)
    x = torch.tensor([[[1.0, 3.0]]]).expand(3, 1, 2)
    conditions = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    out = norm(x, conditions, task_ids=torch.tensor([4, 4, 1]))
    torch.testing.assert_close(out, torch.tensor([[[-2.7, 6.0]], [[-2.7, 6.0]], [[-0.5, 1.5]]]))


def test_the_bottleneck_is_linear_in_its_input_and_a_third_as_wide():
    bottleneck = ConditionalBottleneck(7)
    assert bottleneck.down.out_features == 2
    x, condition = torch.randn(1, 3, 7), torch.randn(1, 7)
    origin = bottleneck(condition, torch.zeros_like(x))
    torch.testing.assert_close(
        bottleneck(condition, 2 * x) - origin, 2 * (bottleneck(condition, x) - origin), atol=1e-5, rtol=1e-4
    )
