"""The commands about sparse subnetworks: prune, masks, evaluate, export. Parse, call, print; `mlpt.cli` adds them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mlpt.errors import UserError

masks_app = typer.Typer(help="Compare and look at mask files.", no_args_is_help=True, rich_markup_mode=None)

JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the result to this file")]


def prune(
    model: Annotated[str, typer.Argument(help="a run, a folder or a hub name")],
    sparsity: Annotated[float, typer.Option(help="fraction to prune, in [0, 1)")],
    out: Annotated[str, typer.Option(help="a folder, a .safetensors file, or .pt for the published format")],
    method: Annotated[str, typer.Option(help="magnitude or random")] = "magnitude",
    scope: Annotated[str, typer.Option(help="local: each matrix to the sparsity; global: all together")] = "local",
    modules: Annotated[str, typer.Option(help="tamt, encoder, or a regular expression over module names")] = "tamt",
    structured: Annotated[str | None, typer.Option(help="heads or neurons: prune those instead of weights")] = None,
    seed: Annotated[int, typer.Option(help="of random masks")] = 0,
) -> None:
    """One-shot masks of a model. Trained and iterative ones: mlpt pretrain tamt_mlm, tamt_kd, tamt_imp, ..."""
    from mlpt.downstream.loading import model_folder
    from mlpt.sparsity import commands

    chosen: Any = {
        "scope": _one_of("scope", scope, ("local", "global")),
        "structured": None if structured is None else _one_of("structured", structured, ("heads", "neurons")),
    }
    made = commands.prune(model_folder(model), method, sparsity, out, seed, modules=modules, **chosen)
    print(f"{made['file']}: {made['method']} masks, density {made['density']:.4f} over {len(made['layers'])} matrices")


@masks_app.command()
def compare(
    files: Annotated[list[str], typer.Argument(help="two mask files or more")],
    by_position: Annotated[bool, typer.Option("--by-position", help="pair matrices by order, as published")] = False,
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="draw the heat map to this image (needs matplotlib)")] = None,
) -> None:
    """Jaccard similarity of kept weights: each pair of files, mean over matrices."""
    from mlpt.sparsity.commands import compare_files
    from mlpt.sparsity.compare import plot_comparison

    comparison = compare_files(files, "position" if by_position else "key")
    for name, means in zip(comparison.names, comparison.means, strict=True):
        print("  ".join(f"{mean:.4f}" for mean in means), name, sep="  ")
    if json_file is not None:
        json_file.write_text(comparison.to_json() + "\n")
    if plot is not None:
        plot_comparison(comparison, plot)


@masks_app.command()
def distance(
    reference: Annotated[str, typer.Argument(help="the mask file to start from")],
    files: Annotated[list[str], typer.Argument(help="mask files of later steps")],
    json_file: JsonFile = None,
) -> None:
    """How far masks have moved from a reference (1 - similarity), by step."""
    from mlpt.sparsity.commands import distance_files

    rows = distance_files(reference, files)
    for row in rows:
        print(
            f"step {row['step']:>8}  similarity {row['similarity']:.4f}  distance {row['distance']:.4f}  {row['file']}"
        )
    _write(json_file, rows)


@masks_app.command()
def show(files: Annotated[list[str], typer.Argument(help="mask files")], json_file: JsonFile = None) -> None:
    """What mask files say of themselves: method, target, density of every matrix."""
    from mlpt.sparsity import commands

    rows = commands.show(files)
    for row in rows:
        print(f"{row['file']}: method {row['method']}, sparsity {row['sparsity']}, density {row['density']:.4f}")
        for name, layer in row["layers"].items():
            print(f"  {layer['density']:.4f}  {name}")
    _write(json_file, rows)


def evaluate(
    model: Annotated[str, typer.Argument(help="a run, a folder or a hub name")],
    blocks: Annotated[str | None, typer.Option(help="prepared blocks; default: those of the run")] = None,
    masks: Annotated[str | None, typer.Option(help="mask file to apply")] = None,
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    batches: Annotated[int, typer.Option(help="of 32 blocks")] = 16,
    seed: Annotated[int, typer.Option(help="of the masking")] = 42,
    padding: Annotated[str, typer.Option(help="out, or in as published: padded positions in the KD losses")] = "out",
    json_file: JsonFile = None,
) -> None:
    """Pretraining losses of a model, dense or masked: MLM, perplexity, distances to the dense model, densities."""
    from mlpt.downstream.loading import model_folder
    from mlpt.sparsity.commands import evaluate_files

    chosen: Any = {
        "split": _one_of("split", split, ("train", "dev", "test")),
        "padding": _one_of("padding", padding, ("out", "in")),
    }
    values = evaluate_files(
        model_folder(model), blocks or _blocks_of_run(model), masks, batches=batches, seed=seed, **chosen
    )
    losses = f"mlm loss {values['mlm_loss']:.4f} nats, perplexity {values['perplexity']:.2f}"
    print(f"{losses}, density {values['density']:.4f}")
    if masks is not None:
        print(f"kd loss against the dense model: cosine {values['kd_cosine']:.5f}, mse {values['kd_mse']:.5f}")
        for name, density in values["layers"].items():
            print(f"  {density:.4f}  {name}")
    _write(json_file, values)


def export(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="a run, a folder or a hub name")],
    out: Annotated[str, typer.Option(help="the new folder")],
    masks: Annotated[str | None, typer.Option(help="mask file: a dense folder with zeros")] = None,
    heads: Annotated[str | None, typer.Option(help="head mask (.npy): a smaller model")] = None,
    neurons: Annotated[str | None, typer.Option(help="neuron mask (.npy): a smaller model")] = None,
    json_file: JsonFile = None,
) -> None:
    """A folder that other programs load. Zeros make no model faster; removed heads and neurons do."""
    from mlpt.downstream.loading import model_folder
    from mlpt.sparsity.commands import export_files

    made = export_files(model_folder(model), out, masks, heads, neurons)
    print(f"{made['folder']}: load it with {made['loader']}")
    for name, value in made.get("latency", {}).items():
        print(f"  {name}: {value}")
    _write(json_file, made)


def _blocks_of_run(model: str) -> str:
    remembered = Path(model) / "blocks.json"
    if not remembered.is_file():
        raise UserError(f"{model} is no run that remembers its text; name prepared blocks: --blocks FOLDER")
    return str(json.loads(remembered.read_text())["blocks"])


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"--{option} is one of {', '.join(allowed)}, not '{value}'")
    return value


def _write(file: Path | None, value: Any) -> None:
    if file is not None:
        file.write_text(json.dumps(value, indent=1) + "\n")
