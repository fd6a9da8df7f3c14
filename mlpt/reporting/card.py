"""The model card beside weights: what the model is, what it was trained on, how far, and what it is not good for.

Everything in it is read from the run and from the folder; what nobody knows is said to be unknown.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from mlpt.outputs import write_file
from mlpt.reporting.html.parts import duration, number, without_paths
from mlpt.reporting.records import CONFIG, Record, read_run

CARD = "README.md"
_MOMENTS = 6  # of the mixture's history


def write_card(folder: Path, record: Record | None, exported: Mapping[str, Any] | None = None) -> None:
    """Write the card of the model in `folder`.

    record    the run that trained it; None where that is not known.
    exported  what `mlpt export` said of the folder; None for a run's own.
    """
    write_file(folder / CARD, model_card(folder, record, exported).encode())


def run_of_model(folder: Path) -> Record | None:
    """The run whose model, or whose checkpoint's model, lies in `folder`."""
    for place in (folder.parent, folder.parent.parent):
        if folder.parent.name in ("models", place.name) and (place / CONFIG).is_file():
            return read_run(str(place))
    return None


def model_card(folder: Path, record: Record | None, exported: Mapping[str, Any] | None = None) -> str:
    """The text of the card, with the head that the Hugging Face hub reads."""
    report = {} if record is None else record.config.get("report") or {}
    head = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "license": report.get("licence") or "unknown",
        "tags": ["mlpt", "masked-language-model", "pretraining"],
    }
    name = folder.name if record is None else str(record.config.get("name") or record.name)
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n", f"# {name}\n", *_model(folder, exported)]
    if record is None:
        parts.append("## Training\n\nNot known: this folder names no run of mlpt.\n")
    else:
        parts += [*_training(record), *_results(record), *_mixture(record), *_sparsity(record)]
    parts += [_limits(record), _licence(str(head["license"]))]
    text = "\n".join(parts)
    return without_paths(text, "\0")  # a card is passed on: not even the run's own place


def _model(folder: Path, exported: Mapping[str, Any] | None) -> Iterator[str]:
    config = _json(folder / "config.json")
    count = _parameters(folder / "model.safetensors")
    names = {"num_hidden_layers": "layers", "hidden_size": "wide", "num_attention_heads": "attention heads"}
    sizes = [f"{config[key]} {word}" for key, word in names.items() if key in config]
    kind = config.get("model_type", "an encoder")
    about = ", ".join([*sizes, *([f"vocabulary {number(config['vocab_size'])}"] if "vocab_size" in config else [])])
    parameters = "" if count is None else f" {count:,} parameters."
    yield f"An encoder of the architecture {kind} with a masked language modelling head: {about}.{parameters}\n"
    loader = str((exported or {}).get("loader", "transformers.AutoModelForMaskedLM"))
    if loader.startswith("transformers."):
        use = (
            "from transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
            "model = AutoModelForMaskedLM.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)"
        )
    else:
        module, _, function = loader.rpartition(".")
        use = f"from {module} import {function}\n\nmodel = {function}(FOLDER)"
    yield f"```python\n{use}\n```\n"
    if exported and exported.get("masks") is not None:
        yield f"Exported with masks: {_exported_sizes(exported)}.\n"


def _exported_sizes(exported: Mapping[str, Any]) -> str:
    if "parameters" in exported:
        return f"{exported['parameters']:,} of {exported['parameters_before']:,} parameters are left"
    return f"{100 * float(exported['density']):.2f} % of the masked weights are kept, the others are zero"


def _training(record: Record) -> Iterator[str]:
    data, train, model = (record.config.get(key) or {} for key in ("data", "train", "model"))
    named = data.get("sources") or {"": data.get("source")}
    sources = "; ".join(f"{name}: {_told(source)}" if name else _told(source) for name, source in named.items())
    optimizer = train.get("optimizer") or {}
    rows = {
        "text": sources,
        "tokenizer": data.get("tokenizer"),
        "started from": model.get("pretrained") or "random weights",
        "recipe": record.config.get("name"),
        "seed": record.seed,
        "objectives": ", ".join(record.config.get("objectives") or {}) or None,
        "steps": number(record.steps),
        "tokens": number(record.tokens),
        "batch": f"{train.get('batch_size')} blocks of {data.get('block_size')} tokens",
        "precision": train.get("precision"),
        "peak learning rate": optimizer.get("lr"),
    }
    yield "## Training\n\n" + _list(rows)
    machine = (record.starts[-1].get("environment") or {}) if record.starts else {}
    workers = (record.config.get("runtime") or {}).get("num_workers")
    rows = {
        "time": f"{duration(record.seconds)} of training",
        "workers": "one process" if workers == 0 else workers,
        "machine": machine.get("system") and f"{machine['system']}, {machine.get('cpus')} CPUs (of the driver)",
        "GPUs": ", ".join(machine.get("gpus") or []) or None,
        "versions": ", ".join(f"{name} {version}" for name, version in (machine.get("packages") or {}).items()) or None,
        "starts": len(record.starts) or None,
    }
    yield "## Compute\n\n" + _list(rows)


def _results(record: Record) -> Iterator[str]:
    before, after = record.metrics.first("held_out_before"), record.newest("held_out")
    if not after:
        return
    lines = ["| objective | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {number(before.get(name))} | {number(loss)} |" for name, loss in after.items()]
    entropy = record.summary.get("unigram_entropy")
    known = "" if entropy is None else f" The unigram entropy of that text is {number(entropy)} nats a token."
    yield "## Held-out losses\n\nIn nats, on the test split of the training text." + known + "\n"
    yield "\n".join(lines) + "\n\nDownstream tasks were not measured by this run.\n"


def _mixture(record: Record) -> Iterator[str]:
    columns = record.metrics.under("mixture")
    if len(columns) < 2:
        return
    lines = [f"| step | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for step in np.unique(np.linspace(0, record.steps, _MOMENTS).astype(int)):
        shares = []
        for name, column in columns.items():
            at = int(np.searchsorted(column.steps, step, side="right")) - 1
            share = float(column.values[at]) if at >= 0 else record.first_mixture.get(name, float(column.values[0]))
            shares.append(f"{share:.3f}")
        lines.append(f"| {step:,} | {' | '.join(shares)} |")
    yield "## Mixture of objectives over training\n\n" + "\n".join(lines) + "\n"


def _sparsity(record: Record) -> Iterator[str]:
    masks = record.summary.get("masks")
    if not isinstance(masks, Mapping):
        return
    kept = ", ".join(f"{100 * float(share):.2f} % of {what}" for what, share in (masks.get("kept") or {}).items())
    yield (
        f"## Sparsity\n\nMasks made by {masks.get('method')}, target sparsity {masks.get('sparsity')}; kept: {kept}. "
        "In a run's folder the weights are dense and the masks lie beside them.\n"
    )


def _limits(record: Record | None) -> str:
    tokens = "an unknown number of" if record is None else number(record.tokens)
    length = None if record is None else (record.config.get("data") or {}).get("block_size")
    seen = f" It never saw more than {length} tokens at once." if length else ""
    return (
        f"## Limits\n\nTrained on {tokens} tokens: what is not in its text it does not know.{seen} It predicts masked "
        "tokens and is meant to be fine-tuned; it was not examined for biases of its text, and its figures are of one "
        "seed.\n"
    )


def _licence(name: str) -> str:
    if name != "unknown":
        return f"## Licence\n\n{name}\n"
    return (
        "## Licence\n\nNot stated. It depends on the text and on the model it started from; state it in the first "
        "lines of this file, or by `report.licence` of a run.\n"
    )


def _told(source: Any) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list) else str(source)


def _list(rows: Mapping[str, Any]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in rows.items() if value is not None)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _parameters(file: Path) -> int | None:
    """Numbers in the file; None where it is in several parts or not there."""
    try:
        with safe_open(file, framework="np") as stored:
            return sum(prod(stored.get_slice(name).get_shape()) for name in list(stored.keys()))
    except (OSError, SafetensorError):
        return None
