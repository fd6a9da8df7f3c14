"""The profile of a step sums to what the profiler saw, by kinds that operators of torch belong to."""

import pytest
from test_step import shrink

from mlpt.bench import step_profile


def test_each_kind_of_work_stands_beside_that_of_the_peer_in_both_precisions(monkeypatch):
    shrink(monkeypatch)
    rows = {row.name: row for row in step_profile.run()}
    assert len(rows) == 2 * (len(step_profile.KINDS) + 1)
    for precision in ("float32", "bf16"):
        products = rows[f"{precision}, time in matrix products"]
        assert min(products.ours, products.peer) > 0
        assert products.unit == "ms"
        assert products.ratio == pytest.approx(products.peer / products.ours)
    assert rows["float32, time in the optimiser and clipping"].ours > 0, "a fused AdamW has a name of its own"


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "matrix products"),
        ("aten::_log_softmax_backward_data", "the loss's softmax"),
        ("aten::_softmax", "attention's softmax"),
        ("aten::native_layer_norm_backward", "GELU and layer norms"),
        ("aten::_fused_adamw_", "the optimiser and clipping"),
        ("aten::copy_", step_profile.REST),
    ],
)
def test_operators_belong_to_the_kind_that_their_name_says(operator, kind):
    assert step_profile.kind_of(operator) == kind
