"""Where the time of a training step goes, by kind of work, beside that of the stock `Trainer`.

Of torch's profiler: time within each operator itself, of the processor or, with a GPU, of its kernels. What the
profiler itself costs makes the sums larger than an undisturbed step; what is compared are the parts.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from mlpt.bench import step
from mlpt.bench.harness import Row, machine, peak_bytes, wait_for_device
from mlpt.objectives import make_objectives

KINDS = {  # beginnings of operators' names; what none of them fits is the rest
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"),
    "the loss's softmax": ("aten::_log_softmax", "aten::nll_loss"),
    "attention's softmax": ("aten::_softmax", "aten::_safe_softmax", "aten::isneginf", "aten::all", "aten::where"),
    "dropout's random numbers": ("aten::bernoulli_", "aten::native_dropout"),
    "GELU and layer norms": ("aten::gelu", "aten::native_layer_norm"),
    "the optimiser and clipping": ("aten::_fused_adam", "aten::_foreach", "aten::linalg_vector_norm"),
}
REST = "copies, sums and the rest"


def run() -> list[Row]:
    """Milliseconds of a step by kind, in float32 and in bf16, each beside those of `Trainer`'s float32 step."""
    objectives = make_objectives({"mlm": {}}, step.vocabulary())
    tokens = step.make_tokens(step.BATCH * (step.STEPS + 1))
    with tempfile.TemporaryDirectory() as folder:
        peer = step.stock_training(step.make_encoder(objectives).backbone, tokens, folder)
        theirs = _milliseconds(peer.seconds)
        rows = []
        for precision in ("float32", "bf16"):
            training = step.OurTraining(step.make_encoder(objectives), tokens, precision, folder)
            ours = _milliseconds(training.seconds)
            rows += [_row(f"{precision}, time in {kind}", ours[kind], theirs[kind]) for kind in [*KINDS, REST]]
    return rows


def _milliseconds(steps: Callable[[], object]) -> dict[str, float]:
    """Of a step, by kind; `steps` runs `STEPS` of them and one more, and is called once before, to warm up."""
    steps()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        steps()
        wait_for_device()
    spent: dict[str, float] = defaultdict(float)
    operators = (one for one in profiled.key_averages() if one.device_type == DeviceType.CPU)
    for operator in operators:  # kernels of a GPU stand beside them once more
        spent[kind_of(operator.key)] += _microseconds(operator) / 1000 / (step.STEPS + 1)
    return spent


def kind_of(operator: str) -> str:
    """The kind of work that an operator of torch belongs to."""
    fitting = (kind for kind, beginnings in KINDS.items() if operator.startswith(beginnings))
    return next(fitting, REST)


def _microseconds(operator: FunctionEventAvg) -> float:
    of_device = torch.cuda.is_available()
    return float(operator.self_device_time_total if of_device else operator.self_cpu_time_total)


def _row(name: str, ours: float, theirs: float) -> Row:
    return Row("step", name, ours, theirs, theirs / ours if ours else None, "ms", peak_bytes(), machine())
