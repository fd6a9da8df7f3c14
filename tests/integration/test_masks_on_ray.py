"""Mask training through Ray Train: two workers train the scores that one trains."""

import pytest
import torch

from mlpt.sparsity.artefacts import load_masks
from mlpt.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

MASKS = [
    *("masks.method=tamt_mlm", "masks.sparsity=0.6", "masks.train=[scores,heads]", "masks.reset.interval=5"),
    *("objectives.atd=null", "objectives.dtd=null", "meta.rules.mixture={rule: fixed, weights: {mlm: 1}}"),
    *("train.steps=12", "train.micro_batch_size=4", "train.optimizer.lr=5e-3", "train.optimizer.weight_decay=0"),
]


def test_two_ray_workers_train_the_same_scores_as_one(mlpt, tiny, tmp_path):
    """At the same global batch, to float tolerance; a score at the very threshold may fall either way."""
    found = {}
    for workers in (1, 2):
        run = tmp_path / str(workers)
        code, output = mlpt.run("pretrain", *tiny, *MASKS, f"run_dir={run}", f"runtime.num_workers={workers}")
        assert code == 0, output
        assert len(list((run / "logs").glob("rank_*.log"))) == workers
        found[workers] = Checkpoints(run / "checkpoints").latest(print), load_masks(run / "model")
    (one, masks_of_one), (two, masks_of_two) = found[1], found[2]
    scores = [name for name in one.tensors["model"] if name.endswith("scores")]
    assert scores
    for name in scores:
        torch.testing.assert_close(one.tensors["model"][name], two.tensors["model"][name], atol=1e-4, rtol=0)
    moved = [
        float((masks_of_one.masks[name] != masks_of_two.masks[name]).float().mean()) for name in masks_of_one.masks
    ]
    assert max(moved) < 0.02
