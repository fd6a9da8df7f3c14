"""Snapshots carry weights and AdamW's state exactly, and a loaded model trains on as the original does."""

import numpy as np
import pytest
import torch
from tiny_encoder import TinyBlocks, make_adamw, make_encoder, train

from mlpt.errors import UserError
from mlpt.meta.snapshot import load_snapshot, take_snapshot


def test_a_loaded_snapshot_goes_on_training_exactly_as_the_original():
    model = make_encoder(dropout=0.0)
    optimizer = make_adamw(model)
    train(model, optimizer, TinyBlocks(1), 5)  # the three heads have different step counts
    snapshot = take_snapshot(model, optimizer, 5, 1e-3, moments=True)
    twin = make_encoder(seed=9, dropout=0.0)
    twin_optimizer = make_adamw(twin, lr=0.7)
    load_snapshot(twin, twin_optimizer, snapshot)
    train(model, optimizer, TinyBlocks(1), 4, seed=50)
    train(twin, twin_optimizer, TinyBlocks(1), 4, seed=50)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_head_that_idled_has_no_optimizer_state_after_loading():
    model = make_encoder()
    optimizer = make_adamw(model)
    train(model, optimizer, TinyBlocks(1), 1)  # "words" only
    snapshot = take_snapshot(model, optimizer, 1, 1e-3, moments=True)
    twin = make_encoder()
    twin_optimizer = make_adamw(twin)
    train(twin, twin_optimizer, TinyBlocks(1), 3)
    load_snapshot(twin, twin_optimizer, snapshot)
    assert twin.heads["noise"].weight not in twin_optimizer.state
    assert float(twin_optimizer.state[twin.embeddings.weight]["step"]) == 1


def test_buffers_are_reused_without_a_new_allocation():
    model = make_encoder()
    optimizer = make_adamw(model)
    first = take_snapshot(model, optimizer, 0, 1e-3, moments=True)
    train(model, optimizer, TinyBlocks(1), 2)
    second = take_snapshot(model, optimizer, 2, 1e-3, moments=True, out=first)
    assert second.parameters is first.parameters
    assert second.exp_avg is first.exp_avg
    fresh = take_snapshot(model, optimizer, 2, 1e-3, moments=True)
    assert np.array_equal(second.parameters, fresh.parameters)
    assert np.array_equal(second.exp_avg_sq, fresh.exp_avg_sq)
    assert np.array_equal(second.optimizer_steps, fresh.optimizer_steps)


def test_frozen_parameters_are_left_out_unless_something_else_alters_them():
    model = make_encoder()
    model.embeddings.weight.requires_grad_(False)
    snapshot = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert snapshot.parameters.shape == (trained,)
    assert snapshot.frozen.size == 0
    whole = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=False, altered=["embeddings.weight"])
    twin = make_encoder(seed=3)
    twin.embeddings.weight.requires_grad_(False)
    load_snapshot(twin, make_adamw(twin), whole)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_buffers_come_along_as_they_were():
    model, twin = make_encoder(), make_encoder(seed=3)
    for each in (model, twin):
        each.register_buffer("threshold", torch.tensor(0.5))
        each.register_buffer("count", torch.tensor([1, 2]), persistent=False)
    model.threshold.fill_(0.25)
    model.count += 2**40  # more than float32 could carry
    snapshot = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=False)
    model.threshold.fill_(0.75)
    for array in snapshot.buffers.values():
        array.flags.writeable = False  # as Ray hands them out
    load_snapshot(twin, make_adamw(twin), snapshot)
    assert float(twin.threshold) == 0.25
    assert twin.count.tolist() == [2**40 + 1, 2**40 + 2]


def test_a_snapshot_with_an_unknown_buffer_is_refused():
    model = make_encoder()
    model.register_buffer("threshold", torch.tensor(0.5))
    snapshot = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=False)
    twin = make_encoder()
    with pytest.raises(UserError, match="'threshold', which the model does not have"):
        load_snapshot(twin, make_adamw(twin), snapshot)


def test_read_only_buffers_load_without_a_warning(recwarn):
    model = make_encoder()
    snapshot = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=True)
    for array in (snapshot.parameters, snapshot.exp_avg, snapshot.exp_avg_sq):
        array.flags.writeable = False
    twin = make_encoder(seed=3)
    load_snapshot(twin, make_adamw(twin), snapshot)
    assert not recwarn.list
    assert torch.equal(twin.embeddings.weight, model.embeddings.weight)


def test_a_snapshot_of_another_model_is_refused_in_one_line():
    model = make_encoder()
    snapshot = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=False)
    other = make_encoder(width=4)
    with pytest.raises(UserError, match="same model settings"):
        load_snapshot(other, make_adamw(other), snapshot)
