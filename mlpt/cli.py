"""The command line: parse, call, print; no logic. Errors are one line and exit code 2; `--debug` shows more."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mlpt import cli_finetune, cli_masks, cli_question
from mlpt.errors import UserError
from mlpt.stopping import Stopped

app = typer.Typer(
    help="Pretrain encoder language models while learning how to pretrain them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    cli_question.question,
    cli_masks.prune,
    cli_masks.evaluate,
    cli_masks.export,
    cli_finetune.finetune,
):
    app.command()(command)
app.add_typer(cli_masks.masks_app, name="masks")
app.add_typer(cli_question.hard_tokens_app, name="hard-tokens")
console = Console()

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="settings, e.g. train.steps=200")
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and Ray's own logs")] = False,
) -> None:
    if debug:
        os.environ["MLPT_DEBUG"] = "1"


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="text: files, folders, globs, URIs, hub:NAME[:config], docs")],
    out: Annotated[str, typer.Option(help="folder or URI for tokenizer and blocks")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="data settings, e.g. block_size=128")
    ] = None,
) -> None:
    """Text -> tokenizer + blocks."""
    from mlpt.data.prepare import DataConfig
    from mlpt.data.prepare import prepare as prepare_blocks
    from mlpt.prepared import describe
    from mlpt.reporting.display import Display
    from mlpt.settings import load_settings, parse_overrides

    words = [word for word in sources if "=" not in word]
    given = [word for word in sources if "=" in word] + (settings or [])
    config = load_settings(DataConfig, {"source": words, **parse_overrides(given)}, "data")
    with Display(console=console) as display, display.bytes_done("preparing text") as progress:
        manifest = prepare_blocks(config, out, progress=progress)
    _print(describe(manifest, out))


@app.command()
def pretrain(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE] [key=value ...]", help="a packaged recipe or a YAML file")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="go on with the run in this folder")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="with --resume: begin the run again at step 0")] = False,
) -> None:
    """The main job: pretrain an encoder while its mixture of objectives is learned."""
    from mlpt.config import WHOLE
    from mlpt.launch import pretrain as run
    from mlpt.settings import parse_overrides

    recipes = [word for word in words or [] if "=" not in word]
    if len(recipes) > 1:
        raise UserError(f"give one recipe, not {len(recipes)}: {', '.join(recipes)}")
    settings = parse_overrides((word for word in words or [] if "=" in word), whole=WHOLE)
    try:
        run(
            recipes[0] if recipes else None,
            settings,
            resume=resume,
            restart=restart,
            console=console,
            debug=_debugging(),
        )
    except Stopped as stopped:  # here, because the library of the command line would swallow it
        print(f"mlpt: {stopped}", file=sys.stderr)
        raise typer.Exit(stopped.exit_code) from None


@app.command()
def tune(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPACE [key=value ...]", help="a shipped space or a .py file; sweep.* settings are the sweep's"
        ),
    ] = None,
    spaces: Annotated[bool, typer.Option("--list", help="show the shipped spaces and what they ask")] = False,
    resume: Annotated[str | None, typer.Option(help="go on with the sweep in this folder")] = None,
) -> None:
    """Ray Tune over a space: many runs side by side, the best recipe or the Pareto front."""
    from mlpt.runtime.space import shipped_spaces
    from mlpt.runtime.sweep import resume_sweep, start_sweep

    names = [word for word in words or [] if "=" not in word]
    if spaces:
        for space in shipped_spaces():
            _print(f"{space.name:13}  {space.question}")
    elif resume is not None and not words:
        resume_sweep(resume, _print, debug=_debugging())
    elif len(names) == 1 and resume is None:
        start_sweep(names[0], [word for word in words or [] if "=" in word], _print, debug=_debugging())
    else:
        raise UserError("give one space (mlpt tune --list shows them), or --resume FOLDER and nothing else")


@app.command()
def bench(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE...]", help="default: all but sweep and soak")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")] = None,
) -> None:
    """Throughput, memory and overhead on this machine, as ratios against named peers measured in the same run."""
    from mlpt.bench.cases import run_cases, write_json

    rows = []
    for row in run_cases(cases or []):
        rows.append(row)
        peer = "" if row.peer is None else f"  peer {row.peer:,.4g}"
        ratio = "" if row.ratio is None else f"  ratio {row.ratio:.2f}"
        peak = f"peak {row.peak_bytes / 2**20:,.0f} MiB"
        _print(f"{row.case}: {row.name}: {row.ours:,.4g} {row.unit}{peer}{ratio}  {peak}")
    if rows:
        _print(rows[0].machine)
    if json_file is not None:
        write_json(rows, json_file)


@app.command()
def doctor() -> None:
    """What is installed, what Ray sees, what will not work and why."""
    from mlpt.runtime.doctor import examine

    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    findings = list(examine())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        _print(f"{marks[finding.state]}  {finding.subject:{width}}  {finding.text}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def _print(text: str) -> None:
    """One line, never wrapped or coloured: it may go to a file or a pipe."""
    console.print(text, highlight=False, soft_wrap=True)


def _debugging() -> bool:
    return os.environ.get("MLPT_DEBUG") == "1"


def main() -> None:
    """Entry point of the console script."""
    # Libraries' progress bars would stand between our own lines; what the user has set stays.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        if _debugging():
            raise
        print(f"mlpt: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "mlpt: stopped; a run goes on by `mlpt pretrain --resume RUN`, other work by the same command",
            file=sys.stderr,
        )
        sys.exit(130)
