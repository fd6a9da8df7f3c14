"""The commands about sparse subnetworks: prune, masks, evaluate, export. Parse, call, print; `mlpt.cli` adds them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mlpt import outputs
from mlpt.cli_options import JsonFile, Overwrite, json_file, result_file
from mlpt.errors import UserError
from mlpt.reporting.text import say

masks_app = typer.Typer(help="Compare and look at mask files.", no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[str, typer.Argument(help="a run (or RUN@best, RUN@step=500), a folder or a hub name")]
Dense = Annotated[bool, typer.Option("--dense", help="leave the masks beside the model's weights aside")]
ByPosition = Annotated[bool, typer.Option("--by-position", help="pair matrices by order, as published")]


def prune(
    model: Model,
    sparsity: Annotated[float, typer.Option(help="fraction to prune, in [0, 1)")],
    out: Annotated[str, typer.Option(help="a folder, a .safetensors file, or published: .pt, with --structured .npy")],
    method: Annotated[str, typer.Option(help="magnitude or random")] = "magnitude",
    scope: Annotated[str, typer.Option(help="local: each matrix to the sparsity; global: all together")] = "local",
    modules: Annotated[str, typer.Option(help="tamt, encoder, or a regular expression over module names")] = "tamt",
    structured: Annotated[str | None, typer.Option(help="heads or neurons: prune those instead of weights")] = None,
    rounding: Annotated[
        str,
        typer.Option(help="of how many weights to prune: floor as mask training, round as the published one-shot"),
    ] = "floor",
    seed: Annotated[int, typer.Option(help="of random masks")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """One-shot masks of a model. Trained and iterative ones: mlpt pretrain tamt_mlm, tamt_kd, tamt_imp, ..."""
    from mlpt.api import masks

    chosen: Any = {
        "scope": one_of("scope", scope, ("local", "global")),
        "structured": None if structured is None else one_of("structured", structured, ("heads", "neurons")),
        "rounding": one_of("rounding", rounding, ("floor", "round")),
    }
    given: Any = {"method": method, "modules": modules, "seed": seed, "overwrite": overwrite, "say": say}
    made = masks.prune(model, sparsity, out, **given, **chosen)
    say(f"{made['file']}: {made['method']} masks, density {made['density']:.4f} over {len(made['layers'])} matrices")


@masks_app.command()
def compare(
    files: Annotated[list[str], typer.Argument(help="two mask files or more")],
    by_position: ByPosition = False,
    json: JsonFile = None,
    plot: Annotated[str | None, typer.Option(help="draw the heat map to this image (needs matplotlib)")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Jaccard similarity of kept weights: each pair of files, mean over matrices."""
    from mlpt.api.masks import compare_masks
    from mlpt.sparsity.compare import plot_comparison

    file = json_file(json, overwrite, "names", "means", "matrices")
    image = result_file(plot, overwrite, _is_drawn)
    comparison = compare_masks(files, pairing=_pairing(by_position))
    for name, means in zip(comparison.names, comparison.means, strict=True):
        say("  ".join([*(f"{mean:.4f}" for mean in means), name]))
    if file is not None:
        outputs.write_file(file, (comparison.to_json() + "\n").encode())
    if image is not None:
        plot_comparison(comparison, image)


@masks_app.command()
def distance(
    reference: Annotated[str, typer.Argument(help="the mask file to start from")],
    files: Annotated[list[str], typer.Argument(help="mask files of later steps")],
    by_position: ByPosition = False,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """How far masks have moved from a reference (1 - similarity), by step."""
    from mlpt.api.masks import mask_distances

    file = json_file(json, overwrite, "file", "step", "distance")
    rows = mask_distances(reference, files, pairing=_pairing(by_position))
    for row in rows:
        say(f"step {row['step']:>8}  similarity {row['similarity']:.4f}  distance {row['distance']:.4f}  {row['file']}")
    _write(file, rows)


@masks_app.command()
def show(
    files: Annotated[list[str], typer.Argument(help="mask files")],
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """What mask files say of themselves: method, target, density of every matrix."""
    from mlpt.api.masks import describe_masks

    file = json_file(json, overwrite, "file", "method", "layers")
    rows = describe_masks(files)
    for row in rows:
        say(f"{row['file']}: method {row['method']}, sparsity {row['sparsity']}, density {row['density']:.4f}")
        for name, layer in row["layers"].items():
            say(f"  {layer['density']:.4f}  {name}")
    _write(file, rows)


@masks_app.command()
def convert(
    file: Annotated[str, typer.Argument(help="a mask file, of this project or a published mask.pt")],
    out: Annotated[
        str, typer.Argument(help="published: mask.pt, or .npy with --model; ours: a .safetensors or a folder")
    ],
    suffix: Annotated[str, typer.Option(help="of a .pt's keys: weight (mask training) or weight_mask (pruning)")] = (
        "weight"
    ),
    model: Annotated[
        str | None, typer.Option(help="the base model, whose hash a file of ours then carries; a .npy needs it")
    ] = None,
    another_base: Annotated[
        bool, typer.Option("--another-base", help="with --model: the masks were made for other weights of these shapes")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Masks from one format to the other: bits with a description, or a published dict of bool tensors."""
    from mlpt.api.masks import convert_masks

    chosen: Any = one_of("suffix", suffix.removeprefix("."), ("weight", "weight_mask"))
    given: Any = {"model": model, "another_base": another_base, "overwrite": overwrite, "say": say}
    made = convert_masks(file, out, suffix=chosen, **given)
    say(f"{made['file']}: density {made['density']:.4f} over {made['matrices']} matrices")


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="a run (or RUN@best, RUN@step=500), a folder, a hub name; many for --suite"
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=DATA],...", help="instead of losses, what the model knows: see docs/EVALUATION.md"),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="of a fine-tuned model: its scores on the dev rows of sst2,rte")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="of tasks: folder of the original downloads, or hub:")] = None,
    task_file: Annotated[list[str] | None, typer.Option(help="YAML that describes tasks of your own")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="of a suite, e.g. blimp.masking=plain; of tasks, e.g. max_length=256"),
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="prepared blocks; default: those of the run")] = None,
    masks: Annotated[str | None, typer.Option(help="mask file to apply; default: those beside the weights")] = None,
    dense: Dense = False,
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    batches: Annotated[int, typer.Option(min=1, help="how many, of blocks drawn by the seed")] = 16,
    every: Annotated[bool, typer.Option("--all", help="every block of the split, in order, as published")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="blocks; published: 16")] = 32,
    seed: Annotated[int, typer.Option(help="of the masking")] = 42,
    padding: Annotated[str, typer.Option(help="out, or in as published: padded positions in the KD losses")] = "out",
    token_types: Annotated[
        str, typer.Option(help="zero, or pair as published for BERT's pairs: 1 for the second, in the KD losses")
    ] = "zero",
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Pretraining losses of a model, dense or masked: MLM, perplexity, distances to the dense model, densities.

    With --suite what it knows without fine-tuning, for example --suite blimp=FILE,pos=TREEBANK,docs_package:
    blimp, zorro, pairs (minimal pairs), cloze (blanks), pos (labels of words), domains (prepared blocks), and any
    labelled task (a linear probe; its DATA is the folder of the original files, or hub:).

    With --tasks or --task-file how a fine-tuned model does on their dev rows; nothing is trained.
    """
    from mlpt.api.evaluation import kind_of, losses

    kind = kind_of(models, suite or [], [*(tasks or []), *(task_file or [])], data_dir, blocks, settings)
    if kind == "suites":
        from mlpt.cli_suites import evaluate_suites

        assert suite is not None
        evaluate_suites(models, suite, settings or [], masks, dense, json_file(json, overwrite, "suites"))
        return
    (model,) = models
    if kind == "tasks":
        from mlpt.cli_suites import evaluate_tasks

        values: Any = {
            "tasks": [name for word in tasks or () for name in word.split(",")],
            "masks": masks,
            "dense": dense,
        }
        evaluate_tasks(model, values, data_dir, task_file or [], settings or [], json_file(json, overwrite, "tasks"))
        return

    chosen: Any = {
        "split": one_of("split", split, ("train", "dev", "test")),
        "padding": one_of("padding", padding, ("out", "in")),
        "token_types": one_of("token-types", token_types, ("zero", "pair")),
        "batches": None if every else batches,
        "batch_size": batch_size,
    }
    file = json_file(json, overwrite, "mlm_loss", "perplexity")
    values = losses(model, blocks, masks, say, seed=seed, dense=dense, **chosen)
    told = f"mlm loss {values['mlm_loss']:.4f} nats, perplexity {values['perplexity']:.2f}"
    say(f"{told}, density {values['density']:.4f}; {values['blocks']:,} blocks of {values['split']}")
    if values["masks"] is not None:
        say(f"masks: {values['masks']}")
        say(f"kd loss against the dense model: cosine {values['kd_cosine']:.5f}, mse {values['kd_mse']:.5f}")
        for name, density in values["layers"].items():
            say(f"  {density:.4f}  {name}")
    _write(file, values)


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="a run (or RUN@best, RUN@step=500), a folder or a hub name")
    ],
    out: Annotated[str, typer.Option(help="the new folder")],
    masks: Annotated[
        str | None,
        typer.Option(
            help="mask file: zeros, or of heads and neurons: a smaller model; default: those beside the weights"
        ),
    ] = None,
    heads: Annotated[str | None, typer.Option(help="head mask (.npy): a smaller model")] = None,
    neurons: Annotated[str | None, typer.Option(help="neuron mask (.npy): a smaller model")] = None,
    dense: Dense = False,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """A folder that other programs load. Zeros make no model faster; removed heads and neurons do."""
    from mlpt.api.masks import export as run

    file = json_file(json, overwrite, "folder", "loader")
    chosen: Any = {"masks": masks, "heads": heads, "neurons": neurons, "dense": dense}
    made = run(model, out, overwrite=overwrite, say=say, **chosen)
    say(f"{made['folder']}: load it with {made['loader']}")
    if made["masks"] is not None:
        say(f"with the masks of {made['masks']}")
    if "parameters" in made:
        say(f"{made['parameters']:,} parameters instead of {made['parameters_before']:,}")
    for name, value in made.get("latency", {}).items():
        say(f"  {name}: {value}")
    _write(file, made)


def _pairing(by_position: bool) -> Any:
    return "position" if by_position else "key"


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value`, or UserError in the option's name where it is none of `allowed`."""
    if value not in allowed:
        raise UserError(f"--{option} is one of {', '.join(allowed)}, not '{value}'")
    return value


def _write(file: Path | None, value: Any) -> None:
    if file is not None:
        outputs.write_json(file, value)


def _is_drawn(path: Path) -> bool:
    """True for an image that matplotlib has drawn: it leaves its name in each kind of file."""
    return b"atplotlib" in path.read_bytes()
