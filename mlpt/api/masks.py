"""What `mlpt prune`, `mlpt masks` and `mlpt export` do, as functions: `mlpt.sparsity.*` and `mlpt.export`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mlpt import outputs
from mlpt.api.speaking import speaker
from mlpt.errors import UserError
from mlpt.outputs import StrPath
from mlpt.reporting.card import run_of_model, write_card
from mlpt.run.result import Run, name_of
from mlpt.run.saved import Say, resolve_model
from mlpt.sparsity import commands
from mlpt.sparsity.artefacts import description_path, load_masks
from mlpt.sparsity.compare import Comparison, Pairing
from mlpt.sparsity.structured import load_group_mask

EXPORTED = "export.json"  # says what a folder was exported from; written last
_FILES = (".safetensors", ".pt", ".npy")  # of masks; any other name is a folder's


def prune(
    model: Run | StrPath,
    sparsity: float,
    out: StrPath,
    *,
    method: str = "magnitude",
    scope: Literal["local", "global"] = "local",
    modules: str = "tamt",
    structured: Literal["heads", "neurons"] | None = None,
    rounding: Literal["floor", "round"] = "floor",
    seed: int = 0,
    overwrite: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """One-shot masks of a model. Trained and iterative ones: `mlpt.pretrain("tamt_mlm", ...)`.

    sparsity    fraction to prune, in [0, 1).
    out         a folder, a .safetensors file, or published: .pt, with `structured` .npy.
    method      magnitude or random (with `seed`). scope: each matrix to the sparsity, or all together.
    modules     tamt, encoder, or a regular expression over module names.
    structured  prune whole heads or neurons instead of weights.
    rounding    of how many weights the sparsity is: `floor` as mask training, `round` as the published one-shot script.

    Returns {file, method, density, layers}, densities as fractions kept. Raises `UserError` for bad input.
    """
    with _place_of_masks(os.fspath(out), overwrite) as place:
        found = resolve_model(name_of(model), say or speaker(False))
        chosen: Any = {"scope": scope, "modules": modules, "structured": structured, "rounding": rounding}
        return commands.prune(found, method, sparsity, str(place), seed, **chosen)


def compare_masks(files: Sequence[StrPath], *, pairing: Pairing = "key") -> Comparison:
    """Jaccard similarity of kept weights of each pair of mask files, mean over matrices.

    pairing  matrices by their `key`, or by `position`, as published: two empty ones are then NaN alike, not 1.
    Raises `UserError` for fewer than two files, and for masks of different models.
    """
    return commands.compare_files([os.fspath(file) for file in files], pairing)


def mask_distances(reference: StrPath, files: Sequence[StrPath], *, pairing: Pairing = "key") -> list[dict[str, Any]]:
    """{file, step, similarity, distance} of each mask file from the reference, by step; distance = 1 - similarity."""
    return commands.distance_files(os.fspath(reference), [os.fspath(file) for file in files], pairing)


def describe_masks(files: Sequence[StrPath]) -> list[dict[str, Any]]:
    """What mask files say of themselves: {file, method, sparsity, density, layers, ...} of each."""
    return commands.show([os.fspath(file) for file in files])


def convert_masks(
    file: StrPath,
    out: StrPath,
    *,
    suffix: Literal["weight", "weight_mask"] = "weight",
    model: Run | StrPath | None = None,
    another_base: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Masks from one format to the other: bits with a description, or a published dict of bool tensors.

    out     mask.pt or, of heads or neurons, .npy as published; a .safetensors or a folder for this project's format.
    suffix  of a .pt's keys. model: the base, whose hash a file of this project's then carries, and which a .npy needs;
            `another_base`: the masks were made for other weights of these shapes.
    Returns {file, density, matrices}. Raises `UserError` where the masks are of another model.
    """
    if another_base and model is None:
        raise UserError("--another-base says for which weights the masks are meant; name them by --model")
    chosen: Any = f".{suffix}"
    with _place_of_masks(os.fspath(out), overwrite) as place:
        base = None if model is None else resolve_model(name_of(model), say or speaker(False))
        return commands.convert(os.fspath(file), str(place), chosen, base, another_base)


def export(
    model: Run | StrPath,
    out: StrPath,
    *,
    masks: StrPath | None = None,
    heads: StrPath | None = None,
    neurons: StrPath | None = None,
    dense: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """A new folder that other programs load, with a model card.

    masks    a mask file: a dense folder with zeros, or of heads and neurons: a smaller model; default: those
             beside the model's weights, unless `dense`.
    heads    a head mask (.npy), neurons likewise: a smaller model.

    Returns {folder, loader, masks, ...}. Raises `UserError` where `out` holds anything else than an earlier export.
    """
    with outputs.new_folder(os.fspath(out), outputs.EXPORT, overwrite, EXPORTED) as folder:
        source = resolve_model(name_of(model), say or speaker(False))
        made = commands.export_files(source, str(folder), _path(masks), _path(heads), _path(neurons), dense)
        write_card(folder, run_of_model(Path(source)), made)
        outputs.write_json(folder / f"{EXPORTED}.unfinished", {"model": name_of(model), **made})
    return made


def _path(place: StrPath | None) -> str | None:
    return None if place is None else os.fspath(place)


@contextmanager
def _place_of_masks(out: str, overwrite: bool) -> Iterator[Path]:
    """Where masks may be written: a file of its own, with the description beside it, or a folder."""
    if Path(out).suffix not in _FILES:
        with outputs.new_folder(out, outputs.MASKS, overwrite) as folder:
            yield folder
        return
    file = outputs.check_file(out, overwrite, _is_mask)
    if file.suffix == ".safetensors":
        outputs.check_file(description_path(file), overwrite, _is_description)
    yield file


def _is_mask(path: Path) -> bool:
    try:
        load_group_mask(path) if path.suffix == ".npy" else load_masks(path)
    except UserError:
        return False
    return True


def _is_description(path: Path) -> bool:
    return outputs.is_json_of(path, ("format", "layers", "density"))
