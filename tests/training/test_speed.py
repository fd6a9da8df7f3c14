"""Operations a token against torch's own count, and what a run says about its use of the machine."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from mlpt.config import RunConfig
from mlpt.reporting.summary import _figures
from mlpt.run.build import run_rank
from mlpt.settings import load_settings
from mlpt.training import speed
from mlpt.training.group import Group
from mlpt.training.speed import copied_bytes, flops_per_token, matmul_flops
from mlpt.training.tracker import read_metrics

CPU, LENGTH = torch.device("cpu"), 64
SIZES = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES, intermediate_size=256), add_pooling_layer=False),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**SIZES, intermediate_size=96, global_attn_every_n_layers=1)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_operations_a_token_are_those_that_torch_counts(name):
    body = MODELS[name]()
    body.set_attn_implementation("eager")  # whose products are all counted
    tokens = torch.randint(5, 99, (2, LENGTH))
    with FlopCounterMode(display=False) as counted:
        body(tokens)[0].sum().backward()
    # Biases and norms are weights that multiply nothing; the first layer's input needs no gradient.
    assert flops_per_token(body, body.config, LENGTH) == pytest.approx(
        counted.get_total_flops() / tokens.numel(), rel=0.03
    )


def test_what_the_machine_reaches_is_measured_once_for_each_precision_and_number_of_threads():
    matmul_flops.cache_clear()
    first = matmul_flops(CPU, torch.float32, 1)
    assert first > 1e8
    assert matmul_flops(CPU, torch.float32, 1) == first
    assert matmul_flops.cache_info().misses == 1
    assert copied_bytes(CPU) > 1e7


def test_where_nothing_is_left_to_measure_with_the_figures_come_without_the_share(monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(speed, "matmul_flops", full)
    use = speed.MachineUse(6.0, CPU, torch.float32)
    use.begin(1.0)
    assert use.figures(10.0, 3.0) == {"data_share": 0.0, "model_flops_per_token": 6.0}


def test_a_run_says_what_it_made_of_the_machine(small_blocks, tmp_path):
    values = {
        "model": {"hidden_size": 32, "layers": 1, "heads": 2},
        "meta": {"rules": {"mixture": {"rule": "uniform"}}},
        "train": {"steps": 4, "batch_size": 8, "log_every": 2, "evaluate_batches": 1},
        "report": {"tensorboard": False},
    }
    summary = run_rank(load_settings(RunConfig, values), small_blocks, tmp_path, Group())
    assert 0 < summary["data_share"] < 1
    assert 0 < summary["mfu"] < 1
    ceiling = matmul_flops(CPU, torch.float32, torch.get_num_threads())
    reached = summary["model_flops_per_token"] * summary["tokens_per_second"]
    assert summary["mfu"] == pytest.approx(reached / ceiling)
    assert all(line["peak_bytes"] > 2**20 for line in read_metrics(tmp_path) if "data_share" in line)
    shares = [line["data_share"] for line in read_metrics(tmp_path) if "data_share" in line]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
    assert f"({100 * summary['mfu']:.0f} % of what matrix products reach here; " in _figures(summary)[0]
