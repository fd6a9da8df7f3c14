"""The table at the end of a run: what it gained, what it learned, where the model is and how to go on."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlpt.errors import resume_command
from mlpt.reporting.text import printable, say


def print_summary(summary: Mapping[str, Any], run: str, console: Console) -> None:
    """Print the summary that `Loop.run` returned; `run` is the run's folder or URI."""
    table = Table(title="held-out loss on the test split, in nats")
    for heading in ("objective", "before", "after", "mixture at start", "mixture at end"):
        table.add_column(heading, justify="left" if heading == "objective" else "right")
    first = summary["first_mixture"]
    for name, before in summary["held_out_before"].items():
        after = summary["held_out"][name]
        shares = (first.get(name, 0.0), summary["mixture"].get(name, 0.0))
        table.add_row(Text(printable(name)), f"{before:.4f}", f"{after:.4f}", *(f"{share:.3f}" for share in shares))
    console.print(table)
    for line in _figures(summary):
        say(line, console)
    for line in _places(summary, run):
        say(line, console, whole=True)


def _figures(summary: Mapping[str, Any]) -> list[str]:
    meta = summary["meta"]
    rate = summary["tokens_per_second"]
    updates, waited = summary["policy_version"], meta["stall"] + meta["launch"]
    lines = [
        f"trained {summary['tokens']:,} tokens in {summary['steps']} steps at {rate:,.0f} tokens/s{_use(summary)}",
        f"meta-learning: {updates} updates, {meta['learner']:.1f} s of work, {waited:.1f} s of it waited for",
        f"unigram entropy of the held-out text: {summary['unigram_entropy']:.3f} nats a token",
    ]
    if "target" in summary:
        target = summary["target"]
        named = ", ".join(target["weights"])
        lines.append(f"target ({named}): {target['before']:.4f} before, {target['after']:.4f} nats after")
    if len(epochs := summary.get("epochs", {})) > 1:
        lines.append("text gone through: " + ", ".join(f"{name} {times:.2f} times" for name, times in epochs.items()))
    if "mlm" in summary["held_out"]:
        loss = summary["held_out"]["mlm"]
        verdict = "below" if loss < summary["unigram_entropy"] else "not below"
        told = f"{perplexity(loss):,.1f}" if loss < 20 else f"{perplexity(loss):.3g}"
        lines[2] += f"; held-out mlm loss {loss:.3f} (perplexity {told}) is {verdict} it"
    return lines


def perplexity(loss: float) -> float:
    """Of a loss in nats a token; of more than 700 nats that of 700, as floats end soon after."""
    return math.exp(min(loss, 700.0))


def _use(summary: Mapping[str, Any]) -> str:
    if "mfu" not in summary:
        return ""  # of an earlier version
    mfu, making = 100 * summary["mfu"], 100 * summary["data_share"]
    return f" ({mfu:.0f} % of what matrix products reach here; {making:.1f} % of the time to make batches)"


def _places(summary: Mapping[str, Any], run: str) -> list[str]:
    masks = [f"masks:  {run}/model: {_about(summary['masks'])}"] if "masks" in summary else []
    return [f"model:  {run}/model", *masks, f"run:    {run}", f"resume: {resume_command(run)}"]


def _about(masks: Mapping[str, Any]) -> str:
    kept = ", ".join(f"{100 * density:.2f} % of {what} kept" for what, density in masks["kept"].items())
    return f"{kept} (method {masks['method']}, target sparsity {masks['sparsity']:g})"
