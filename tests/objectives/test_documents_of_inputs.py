"""Which document of its block a token belongs to: as the blocks tell it, and wherever an objective moves the token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_bert import VOCABULARY

from mlpt.config import RunConfig
from mlpt.data.batch import Batch
from mlpt.data.blocks import Blocks
from mlpt.data.packing import Layout, Stream, pack_full
from mlpt.errors import UserError
from mlpt.objectives import OBJECTIVES, make_objectives
from mlpt.objectives.base import Inputs
from mlpt.settings import load_settings, merge

PAD, CLS, SEP = VOCABULARY.pad, VOCABULARY.cls, VOCABULARY.sep
LENGTH = 24
REFUSED = {"distill", "combined"}  # by the configuration


def batch() -> Batch:
    """Two blocks in which the ids of a document's tokens say which it is: 10 to 29, 30 to 49, 50 to 69."""
    numbers = [[np.arange(10, 17), np.arange(30, 38), np.arange(50, 54)], [np.arange(10, 12), np.arange(30, 49)]]
    rows = []
    for documents in numbers:
        stream = Stream.of(documents, range(len(documents)), SEP)
        packed, _ = pack_full(stream, Layout(LENGTH, CLS, SEP, PAD))
        rows.append(torch.from_numpy(packed.tokens[0].astype(np.int64)))
    tokens = torch.stack(rows)
    ended = (tokens == SEP).long()
    return replace(Batch.of(tokens), documents=ended.cumsum(1) - ended)


def corrupted(name: str, **settings) -> Inputs:
    objective = make_objectives({name: settings}, VOCABULARY)[name]
    return objective.corrupt(batch(), torch.Generator().manual_seed(1))


def test_blocks_tell_documents_as_their_separators_do(small_blocks):
    blocks = Blocks.open(small_blocks, tells_documents=True)
    rows = np.random.default_rng(0).permutation(len(blocks))
    found = blocks.batch(rows)
    ended = (found.tokens == blocks.vocabulary.sep).long()
    expected = ended.cumsum(1) - ended
    # Behind a document that ends with the payload, the block's own separator belongs to it too.
    expected[:, -1] = expected[:, -2]
    assert int(expected.max()) > 0
    assert torch.equal(found.documents, expected)
    assert Blocks.open(small_blocks).batch(rows[:4]).documents is None


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - REFUSED - {"atd", "dtd", "cse"}))
def test_what_stands_in_its_place_is_of_the_document_there(name):
    """Separators that masking replaces end their documents all the same."""
    settings = {"guided": {"guide": "all"}, "counted_mlm": {"probability": 0.9}}
    inputs = corrupted(name, **settings.get(name, {}))
    assert torch.equal(inputs.documents, batch().documents)
    if name == "counted_mlm":
        assert (inputs.input_ids != SEP)[batch().tokens == SEP].any()


def test_both_views_of_a_text_have_its_documents():
    assert torch.equal(corrupted("cse", rows="all").documents, batch().documents.repeat_interleave(2, 0))


@pytest.mark.parametrize("name", ["atd", "dtd"])
def test_a_token_that_is_moved_takes_its_document_along(name):
    inputs = corrupted(name, probability=0.3)
    documents, labels = inputs.documents, inputs.labels()
    assert not torch.equal(documents, batch().documents)
    own = inputs.input_ids >= 10
    if name == "atd":
        own &= labels == 0  # and not inserted
    assert own.sum() > 20
    assert torch.equal(documents[own], (inputs.input_ids[own] - 10) // 20)
    assert (documents.diff() >= 0).all()


def test_without_documents_no_inputs_have_any():
    for name in sorted(OBJECTIVES.keys() - REFUSED):
        objective = make_objectives({name: {"guide": "all"} if name == "guided" else {}}, VOCABULARY)[name]
        assert objective.corrupt(Batch.of(batch().tokens), torch.Generator().manual_seed(1)).documents is None


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_distillation_from_a_teacher_that_sees_whole_blocks_is_refused(name):
    values = {"model": {"attend_within": "document"}, "objectives": [name]}
    with pytest.raises(UserError, match=f"objectives.{name}: its teacher attends to whole blocks"):
        load_settings(RunConfig, values)
    load_settings(RunConfig, merge(values, {"model": {"attend_within": "block"}}))
