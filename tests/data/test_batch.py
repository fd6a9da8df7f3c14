"""Batches of rows know where they are from; sources give rows by their own numbers."""

import numpy as np
import pytest
import torch

from mlpt.data.batch import Batch, Source
from mlpt.data.blocks import Blocks
from mlpt.data.sources import Sources, Subset


def test_rows_given_as_tokens_are_the_first_of_the_training_split():
    batch = Batch.of(torch.arange(12).view(3, 4))
    assert (batch.rows.tolist(), batch.split, batch.arm, len(batch)) == ([0, 1, 2], "train", "", 3)
    assert batch.rows.dtype == np.int64
    assert Batch.of(torch.zeros(2, 4, dtype=torch.int64), "dev").split == "dev"


def test_a_batch_drawn_for_an_arm_holds_the_same_rows():
    batch = Batch.of(torch.arange(12).view(3, 4), "test")
    drawn = batch.for_arm("mlm@legal")
    assert (drawn.arm, drawn.split, batch.arm) == ("mlm@legal", "test", "")
    assert drawn.tokens is batch.tokens
    assert drawn.rows is batch.rows


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_blocks_give_batches_of_their_own_split(small_blocks, split):
    blocks = Blocks.open(small_blocks, split)
    rows = np.array([3, 0, 5])
    batch = blocks.batch(rows)
    assert torch.equal(batch.tokens, blocks.tokens(rows))
    assert (batch.rows.tolist(), batch.split) == ([3, 0, 5], split)


def test_a_source_is_its_three_splits(small_blocks):
    sources = Sources.open(small_blocks)
    everything = sources["all"]
    assert isinstance(everything, Source)
    assert [everything.split(name).batch(np.array([0])).split for name in ("train", "dev", "test")] == [
        "train",
        "dev",
        "test",
    ]


def test_a_domain_is_a_source_whose_batches_number_rows_of_the_whole_split(small_blocks):
    sources = Sources.open(small_blocks)
    blocks = sources.train
    found = []
    for name in sources.domains:
        train = sources[name].train
        rows = np.arange(len(train))
        batch = train.batch(rows)
        assert torch.equal(batch.tokens, blocks.tokens(batch.rows))
        assert {blocks.domains[index] for index in blocks.domain_of(batch.rows)} <= {name}
        found += batch.rows.tolist()
    of_none = np.flatnonzero(blocks.domain_of(np.arange(len(blocks))) < 0)
    assert sorted([*found, *of_none]) == list(range(len(blocks)))
    assert len(of_none) < len(blocks) / 50
    with pytest.raises(KeyError):
        sources["no such domain"]


def test_a_subset_numbers_its_rows_anew(small_blocks):
    blocks = Blocks.open(small_blocks)
    subset = Subset(blocks, np.array([7, 2, 9]))
    assert len(subset) == 3
    batch = subset.batch(np.array([2, 0]))
    assert batch.rows.tolist() == [9, 7]
    assert torch.equal(batch.tokens, blocks.tokens(np.array([9, 7])))
