"""The commands about hard tokens: question, hard-tokens. Parse, call, print; `mlpt.cli` adds them."""

from typing import Annotated, Any

import typer

from mlpt import outputs
from mlpt.cli_masks import one_of
from mlpt.cli_options import Overwrite
from mlpt.reporting.text import say

hard_tokens_app = typer.Typer(
    help="Look at scores of tokens; import and export the published file of hard tokens.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Metric = Annotated[str | None, typer.Option(help="which score; default: the first that was asked for")]
Threshold = Annotated[float | None, typer.Option(help="scores above it are hard; default: the metric's own")]
Split = Annotated[str, typer.Option(help="train, dev or test")]


def question(
    model: Annotated[str, typer.Argument(help="a run, a folder or a hub name of a masked language model")],
    blocks: Annotated[str, typer.Argument(help="a prepared folder or URI")],
    out: Annotated[str, typer.Option(help="folder or URI for the scores; the same command goes on with it")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="e.g. metrics=[loss,entropy] stride=7 precision=bf16"),
    ] = None,
    split: Split = "train",
    workers: Annotated[int, typer.Option(help="parts side by side on Ray; 1: in this process, without Ray")] = 1,
    gpus: Annotated[float | None, typer.Option(help="of each worker; default: this machine's, shared out")] = None,
    cpus: Annotated[float, typer.Option(help="CPUs of each worker")] = 1,
    address: Annotated[str, typer.Option(help="local, auto or HOST:PORT of a Ray cluster")] = "local",
    overwrite: Overwrite = False,
) -> None:
    """Which tokens are hard for a model: a score for each, for guided masking (self-questioning)."""
    from mlpt.questioning.config import QuestionConfig
    from mlpt.questioning.question import question as ask
    from mlpt.reporting.display import Display
    from mlpt.reporting.text import plain_console
    from mlpt.run.saved import resolve_model
    from mlpt.settings import load_settings, parse_overrides

    given = {"model": resolve_model(model, say), "blocks": blocks, "out": out, "split": split}
    config = load_settings(QuestionConfig, {**given, **parse_overrides(settings or [])}, "question")
    if config.masks is not None:
        say(f"scoring under the masks beside the model ({config.masks}); dense=true leaves them aside")
    with Display(console=plain_console(stderr=True)) as display, display.rows_done("questioning", "blocks") as progress:
        if workers <= 1:
            scores = ask(config, progress=progress, overwrite=overwrite)
        else:
            import torch

            from mlpt.config import RuntimeConfig
            from mlpt.runtime.question import question_on_ray

            shared = torch.cuda.device_count() / workers if gpus is None else gpus
            places = {"num_workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": shared}
            runtime = load_settings(RuntimeConfig, {"address": address, **places}, "runtime")
            scores = question_on_ray(config, runtime, progress, display.say, overwrite)
    _describe(scores, None, None)


@hard_tokens_app.command()
def show(
    folder: Annotated[str, typer.Argument(help="what mlpt question wrote")],
    metric: Metric = None,
    threshold: Threshold = None,
) -> None:
    """How many tokens are hard, by each metric or by one."""
    from mlpt.data.token_scores import TokenScores

    _describe(TokenScores.open(folder), metric, threshold)


@hard_tokens_app.command("import")
def import_(
    files: Annotated[list[str], typer.Argument(help="pickles of {block index: positions}, merged in this order")],
    blocks: Annotated[str, typer.Option(help="the prepared folder that they belong to")],
    out: Annotated[str, typer.Option(help="folder or URI for the scores")],
    split: Split = "train",
    beyond: Annotated[str, typer.Option(help="positions after the end of a block: refuse, or drop that block's")] = (
        "refuse"
    ),
    overwrite: Overwrite = False,
) -> None:
    """The published file of hard tokens -> scores (1: hard). Nothing in the file is executed."""
    from mlpt.data.blocks import Blocks
    from mlpt.questioning.published import import_positions

    chosen: Any = one_of("beyond", beyond, ("refuse", "drop"))
    questioned: Any = one_of("split", split, _SPLITS)
    opened = Blocks.open(blocks, questioned)
    _describe(import_positions(files, opened, out, chosen, overwrite), None, None)


@hard_tokens_app.command()
def export(
    folder: Annotated[str, typer.Argument(help="what mlpt question wrote")],
    file: Annotated[str, typer.Argument(help="the pickle to write, e.g. token_masks_merge.pkl")],
    metric: Metric = None,
    threshold: Threshold = None,
    single: Annotated[str, typer.Option(help="a block's only hard token: array, or squeezed as published")] = "array",
    overwrite: Overwrite = False,
) -> None:
    """Scores -> the published file of hard tokens."""
    from mlpt.data.position_pickle import is_written_here
    from mlpt.data.token_scores import TokenScores
    from mlpt.questioning.published import export_positions

    chosen: Any = one_of("single", single, ("array", "published"))
    place = outputs.check_file(file, overwrite, is_written_here)
    scores = TokenScores.open(folder)
    count = export_positions(scores, place, threshold, metric, chosen)
    say(f"{file}: {count:,} hard tokens in {len(scores):,} blocks")


_SPLITS = ("train", "dev", "test")


def _describe(scores: Any, metric: str | None, threshold: float | None) -> None:
    size = scores.manifest.bytes / max(1, scores.manifest.tokens)
    say(f"{scores.folder}: {len(scores):,} blocks, {scores.manifest.tokens:,} tokens, {size:.2f} bytes a token")
    for name in scores.question.metrics if metric is None else [scores.metric(metric)]:
        above = scores.threshold(threshold, name)
        hardest = scores.threshold_of(0.15, name)
        share = scores.share(threshold, name)
        say(f"  {name}: {share:.2%} of the tokens are hard (above {above:g}); the hardest 15 % are above {hardest:.3g}")
        if warning := scores.warning(threshold, name):
            say(f"  warning: {warning}")
