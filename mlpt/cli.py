"""The command line: parse, call, print; no logic. Errors are one line and exit code 2; `--debug` shows more."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlpt import cli_finetune, cli_masks, cli_push, cli_question, cli_report, cli_settings, cli_study
from mlpt.cli_options import JsonFile, Overwrite, json_file
from mlpt.errors import UserError, one_line, system_error, told
from mlpt.reporting.text import never_fail_to_encode, say, say_error
from mlpt.stopping import Stopped


class _Commands(TyperGroup):
    """The commands; a signal that one of them has no answer to is told, where the library would end in silence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            say_error("stopped; the same command goes on where it was, a sweep by `mlpt tune --resume FOLDER`")
            raise typer.Exit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None


app = typer.Typer(
    cls=_Commands,
    help="Pretrain encoder language models while learning how to pretrain them.",
    epilog="Exit codes: 0 done; 2 one line says what is wrong; 130 and 143 stopped by Ctrl-C or SIGTERM; 1 mlpt doctor "
    "found what will not work.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    cli_question.question,
    cli_masks.prune,
    cli_masks.evaluate,
    cli_masks.export,
    cli_push.push,
    cli_finetune.finetune,
    cli_study.study,
    cli_report.report,
    cli_report.runs,
    cli_report.watch,
    cli_settings.settings,
    cli_settings.recipes,
):
    app.command()(command)
app.add_typer(cli_masks.masks_app, name="masks")
app.add_typer(cli_question.hard_tokens_app, name="hard-tokens")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and Ray's own logs")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="show the versions of mlpt, Python, torch and Ray")
    ] = False,
) -> None:
    if debug:
        os.environ["MLPT_DEBUG"] = "1"
    if version:
        say(_versions())
        raise typer.Exit


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="text: files, folders, globs, URIs, hub:NAME[:config], docs")],
    out: Annotated[str, typer.Option(help="folder or URI for tokenizer and blocks")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="data settings, e.g. block_size=128")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Text -> tokenizer + blocks."""
    from mlpt.data.describe import describe
    from mlpt.data.prepare import DataConfig
    from mlpt.data.prepare import prepare as prepare_blocks
    from mlpt.reporting.display import Display
    from mlpt.reporting.text import plain_console
    from mlpt.settings import load_settings, parse_overrides, split_words

    texts, given = split_words(sources)
    if not texts:
        raise UserError(
            f"no text is named: '{given[0]}' is read as a setting; write ./{given[0]} for a file of that name"
        )
    config = load_settings(DataConfig, {"source": texts, **parse_overrides([*given, *(settings or [])])}, "data")
    with Display(console=plain_console()) as display, display.bytes_done("preparing text") as progress:
        manifest = prepare_blocks(config, out, progress=progress, overwrite=overwrite)
    say(describe(manifest, out))


@app.command()
def pretrain(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [key=value ...]",
            help="a packaged recipe or a YAML file",
            autocompletion=cli_settings.complete_recipes,
        ),
    ] = None,
    resume: Annotated[str | None, typer.Option(help="go on with the run in this folder")] = None,
    overwrite: Overwrite = False,
    restart: Annotated[bool, typer.Option("--restart", help="with --resume: begin the run again at step 0")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the resolved settings and what the run would do and cost; no more")
    ] = False,
) -> None:
    """The main job: pretrain an encoder while its mixture of objectives is learned."""
    from mlpt.config import WHOLE
    from mlpt.reporting.text import plain_console
    from mlpt.run.launch import pretrain as run
    from mlpt.settings import parse_overrides, split_words

    recipes, settings = split_words(words or [])
    if len(recipes) > 1:
        raise UserError(f"give one recipe, not {len(recipes)}: {', '.join(recipes)}")
    if dry_run:
        _show_plan(recipes[0] if recipes else None, parse_overrides(settings, whole=WHOLE), resume)
        return
    try:
        run(
            recipes[0] if recipes else None,
            parse_overrides(settings, whole=WHOLE),
            resume=resume,
            restart=restart,
            overwrite=overwrite,
            console=plain_console(),
            debug=_debugging(),
        )
    except Stopped as stopped:  # here, because the library of the command line would swallow it
        say_error(str(stopped))
        raise typer.Exit(stopped.exit_code) from None


def _show_plan(recipe: str | None, given: dict[str, Any], resume: str | None) -> None:
    from mlpt.config import load_run_config
    from mlpt.reporting.text import plain_console
    from mlpt.run.planning import plan

    if resume is not None:
        raise UserError(
            "--dry-run is for new runs; `mlpt watch RUN` shows how far one is, RUN/config.yaml its settings"
        )
    config = load_run_config(recipe, given)
    lines = plan(config)
    say(config.to_yaml().rstrip(), whole=True)
    for line in lines:
        say(line, plain_console(stderr=True))


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
    overwrite: Overwrite = False,
) -> None:
    """Ray Tune over a space: many runs side by side, the best recipe or the Pareto front."""
    from mlpt.settings import split_words
    from mlpt.tuning.space import shipped_spaces
    from mlpt.tuning.sweep import resume_sweep, start_sweep

    names, settings = split_words(words or [])
    if spaces:
        for space in shipped_spaces():
            say(f"{space.name:13}  {space.question}")
    elif resume is not None and not words and not overwrite:
        resume_sweep(resume, say, debug=_debugging())
    elif len(names) == 1 and resume is None:
        start_sweep(names[0], settings, say, overwrite, debug=_debugging())
    else:
        raise UserError("give one space (mlpt tune --list shows them), or --resume FOLDER and nothing else")


@app.command()
def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE...]", help="default: all but sweep, soak, faults and partitions"),
    ] = None,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Throughput, memory and overhead on this machine, as ratios against named peers measured in the same run."""
    from mlpt.bench.cases import run_cases, write_rows

    file = json_file(json, overwrite, "case", "ours", "machine")
    rows = []
    for row in run_cases(cases or []):
        rows.append(row)
        peer = "" if row.peer is None else f"  peer {row.peer:,.4g}"
        ratio = "" if row.ratio is None else f"  ratio {row.ratio:.2f}"
        peak = f"peak {row.peak_bytes / 2**20:,.0f} MiB"
        say(f"{row.case}: {row.name}: {row.ours:,.4g} {row.unit}{peer}{ratio}  {peak}")
    if rows:
        say(rows[0].machine)
    if file is not None:
        write_rows(rows, file)


@app.command()
def doctor() -> None:
    """What is installed, what Ray sees, what will not work and why."""
    from mlpt.runtime.doctor import examine

    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    findings = list(examine())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        say(f"{marks[finding.state]}  {finding.subject:{width}}  {finding.text}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def _versions() -> str:
    names = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "transformers"))
    return f"mlpt {metadata.version('mlpt')} (Python {platform.python_version()}, {names})"


def _debugging() -> bool:
    return os.environ.get("MLPT_DEBUG") == "1"


def run(words: Sequence[str]) -> int:
    """What `mlpt WORDS` does; its exit code.

    0: done. 1: `mlpt doctor` found something bad. 2: an error that one line on standard error tells. 130, 143: stopped
    by Ctrl-C or SIGTERM.
    """
    try:
        code = app(list(words), prog_name="mlpt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Exception as error:
        if _debugging() and not _is_usage(error):
            raise
        return _tell(error)


def _tell(error: Exception) -> int:
    """Say what is wrong, in one line, and return the exit code; raise what nobody but a programmer can put right."""
    trouble = system_error(error)
    if isinstance(error, UserError):
        say_error(str(error))
    elif _is_usage(error):
        return _tell_usage(error)
    elif trouble is not None:
        say_error(told(trouble))
    else:
        raise error
    return 2


def _is_usage(error: Exception) -> bool:
    """True for what the library of command lines says of wrong words, whichever copy of that library it is."""
    return any(base.__name__ == "ClickException" for base in type(error).__mro__)


def _tell_usage(error: Any) -> int:
    message = one_line(error.format_message())
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = getattr(getattr(error, "ctx", None), "command_path", "mlpt")
        say_error(f"{message[0].lower()}{message[1:].rstrip('.')}; see `{command} --help`")
    return int(error.exit_code)


def main() -> None:
    """Entry point of the console script."""
    # Libraries' progress bars would stand between our own lines; what the user has set stays.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Ray says this of its own end, too, beside our line on it.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^The node with node id: .* has been marked dead")
    never_fail_to_encode()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # told already; Python would flush again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
