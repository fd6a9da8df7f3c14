"""`mlpt push` and `mlpt.push`: a model's folder, with its card, to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from mlpt.api.speaking import speaker
from mlpt.errors import UserError, one_line
from mlpt.outputs import StrPath
from mlpt.run.result import Run, name_of
from mlpt.run.saved import Say, resolve_model

_READ = (".md", ".json", ".yaml", ".txt")  # looked through for folders of this machine


def push(
    model: Run | StrPath,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Upload a model's folder to the hub, as it is.

    model    a `Run`, its folder (or RUN@best, RUN@step=500), or a folder that `mlpt export` made.
    repo     OWNER/NAME on the hub, made if it is not there; you are logged in by `hf auth login` or HF_TOKEN.
    private  for a repository that is made.
    dry_run  check and list everything, send nothing, need no network.

    Returns {repo, files: {name: bytes}, url}; `url` is None after a dry run. Raises `UserError` for a folder without a
    model, a name that the hub does not take, and what the hub answers.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    say = say or speaker(False)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"'{repo}' is no name of a repository on the hub: {one_line(error)}") from error
    folder = Path(resolve_model(name_of(model), say))
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder} holds no model to push: name a run, or a folder that `mlpt export` made")
    if "README.md" not in files:
        say(f"warning: {folder} has no model card (README.md); `mlpt export` writes one")
    for name in _naming_this_machine(folder, files):
        say(f"warning: {name} names a folder of this machine; look at it before others do")
    url = None if dry_run else _upload(folder, repo, private)
    return {"repo": repo, "files": files, "url": url}


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name a run, or a folder that `mlpt export` made")
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _naming_this_machine(folder: Path, files: dict[str, int]) -> list[str]:
    """The files in whose text the home folder, or the one that the model's folder is in, stands."""
    places = {str(folder.resolve().parent), str(Path.home())} - {"/"}
    read = [name for name in files if name.endswith(_READ) and not name.startswith(("tokenizer", "vocab"))]
    texts = {name: (folder / name).read_text(encoding="utf-8", errors="replace") for name in read}
    return [name for name, text in texts.items() if any(f"{place}/" in text for place in places)]


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        hidden = [".*", "**/.*"]
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A model of mlpt", ignore_patterns=hidden)
    except LocalTokenNotFoundError as error:
        raise UserError("you are not logged in to the hub: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses {repo}: {one_line(error)}; are you logged in (`hf auth login`)?") from error
    except OSError as error:
        raise UserError(f"the hub does not answer: {one_line(error)}; --dry-run needs no network") from error
    return str(made)
