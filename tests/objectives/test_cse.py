"""Contrastive sentences against the vectors of specs 3.9."""

import pytest
import torch

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives import make_objectives
from mlpt.objectives.cse import contrastive_loss
from mlpt.randomness import torch_generator

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)


def pairs(texts, **settings):
    tokens = torch.arange(10, 10 + texts)[:, None].expand(texts, 4)
    return make_objectives({"cse": settings}, VOCABULARY)["cse"].corrupt(Batch.of(tokens), torch_generator(0, "cse"))


def test_the_first_half_of_the_texts_is_paired_as_published():
    assert pairs(5).input_ids[:, 0].tolist() == [10, 10, 11, 11]


def test_all_texts_are_paired_when_asked():
    assert pairs(3, rows="all").input_ids[:, 0].tolist() == [10, 10, 11, 11, 12, 12]


def test_a_single_text_is_still_paired():
    assert pairs(1).input_ids[:, 0].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 0), (1, 0), (0, 1), (0, 1)], 0.0),
        ([(1, 0), (1, 0.2), (0.6, 0.8), (0.5, 0.9)], 0.00491183),
        ([(1, 0), (1, 0)], 0.0),
    ],
)
def test_the_loss_equals_the_published_vectors(rows, expected):
    assert contrastive_loss(torch.tensor(rows).float()).item() == pytest.approx(expected, abs=2e-8)


def test_the_target_of_each_row_is_its_neighbour_in_the_pair():
    """Rows 0 and 2 agree, and 1 and 3: every row's own pair is the worst choice, so the loss is large."""
    rows = torch.tensor([(1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
    assert contrastive_loss(rows).item() == pytest.approx(20.0, abs=1e-3)  # (1 - 0) / 0.05


def test_identical_views_give_the_closed_form_loss_of_evaluation_mode():
    """Specs 3.5: with identical views the loss is log(1 + sum exp((s - 1) / 0.05)) over the views of other texts."""
    angle = torch.tensor(0.3)
    one, two = torch.tensor([1.0, 0.0]), torch.stack([angle.cos(), angle.sin()])
    expected = torch.log1p(2 * torch.exp((angle.cos() - 1) / 0.05))
    assert contrastive_loss(torch.stack([one, one, two, two])).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_scores_stay_float32_under_autocast():
    rows = torch.tensor([(1.0, 0.0), (1.0, 0.2), (0.6, 0.8), (0.5, 0.9)])
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(rows)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.00491183, abs=2e-8)
