"""The command `mlpt push`. Parse, call, print; `mlpt.cli` adds it."""

from typing import Annotated

import typer

from mlpt.reporting.text import say


def push(
    model: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="a run (or RUN@best, RUN@step=500), or an exported folder")
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="on the hub; made if it is not there")],
    private: Annotated[bool, typer.Option("--private", help="of a repository that is made")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and list everything, send nothing")] = False,
) -> None:
    """A model, with its card, to the Hugging Face hub; you are logged in by `hf auth login` or HF_TOKEN."""
    from mlpt.api.pushing import push as run

    made = run(model, repo, private=private, dry_run=dry_run, say=say)
    for name, size in made["files"].items():
        say(f"{size:>12,}  {name}")
    total = f"{len(made['files'])} files, {sum(made['files'].values()):,} bytes"
    say(f"{total}: would go to {repo}" if dry_run else f"{total}: {made['url']}", whole=True)
