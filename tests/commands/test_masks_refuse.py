"""`mlpt prune` and `mlpt masks` on bad input: one line, exit code 2, nothing lost or written."""

import pytest

PRUNE = [
    ("prune run --out new", "missing option '--sparsity'"),
    ("prune run --sparsity 0.5", "missing option '--out'"),
    ("prune '' --sparsity 0.5 --out new", "a model needs a name"),
    ("prune ./missing --sparsity 0.5 --out new", "there is no folder './missing'"),
    ("prune user --sparsity 0.5 --out new", "cannot load a masked language model from 'user'"),
    ("prune 'cut model' --sparsity 0.5 --out new", "cannot load a masked language model from 'cut model'"),
    ("prune 'unfinished run' --sparsity 0.5 --out new", "unfinished run has no model yet"),
    ("prune s3://bucket/run --sparsity 0.5 --out new", "is a URI, and models are loaded from folders"),
    ("prune run --sparsity 1 --out new", "sparsity 1.0 is outside [0, 1)"),
    ("prune run --sparsity -0.1 --out new", "sparsity -0.1 is outside [0, 1)"),
    ("prune run --sparsity nan --out new", "sparsity nan is outside [0, 1)"),
    ("prune run --sparsity much --out new", "invalid value for '--sparsity'"),
    ("prune run --sparsity 0.5 --out new --method imp", "iterative pruning trains: mlpt pretrain tamt_imp"),
    ("prune run --sparsity 0.5 --out new --method nothing", "there is no one-shot method 'nothing'"),
    ("prune run --sparsity 0.5 --out new --scope all", "--scope is one of local, global, not 'all'"),
    ("prune run --sparsity 0.5 --out new --modules '(('", "nor a regular expression"),
    ("prune run --sparsity 0.5 --out new --modules nothing", "no linear layer of this model matches"),
    ("prune run --sparsity 0.5 --out new --structured layers", "--structured is one of heads, neurons"),
    ("prune run --sparsity 0.5 --out new --rounding up", "--rounding is one of floor, round, not 'up'"),
    ("prune run --sparsity 0.5 --out new --seed x", "invalid value for '--seed'"),
]
PLACES = [
    ("user", "user is not empty (it holds notes.md) and is not masks that mlpt made; name a new folder"),
    ("user --overwrite", "is not empty (it holds notes.md)"),
    ("run/model", "is not masks that mlpt made"),
    ("exported --overwrite", "is not masks that mlpt made"),
    ("masks", "masks holds masks; name a new folder, or replace it with --overwrite"),
    ("masks.pt", "masks.pt exists; name a new file, or replace it with --overwrite"),
    ("pickle.pt --overwrite", "pickle.pt is no earlier result of this command, so it stays"),
    ("heads.npy --structured heads", "heads.npy exists; name a new file"),
    ("flat.npy --structured heads --overwrite", "flat.npy is no earlier result of this command"),
    ("file", "file is a file; name a folder"),
    ("file/new", "file is a file, not a folder; check the path"),
    ("file/masks.pt", "file is a file, not a folder; check the path"),
    ("no/such/masks.safetensors", "for masks.safetensors; make it, or name another file"),
    ("''", "an empty path was given"),
    ("n" * 300, "the name is too long"),
    (f"{'n' * 300}.pt", "the name is too long"),
]
MASKS = [
    ("masks compare masks", "comparing masks needs two files or more"),
    ("masks compare masks missing", "there is no mask file at missing"),
    ("masks compare masks user", "there is no mask file at user"),
    ("masks compare masks 'cut masks'", "is not a complete mask file"),
    ("masks compare masks pickle.pt", "pickle.pt is refused: it holds more than tensors"),
    ("masks compare masks heads.npy", "heads.npy is a mask of heads or neurons"),
    ("masks compare masks broken.json", "broken.json is not a complete mask file"),
    ("masks compare masks masks.pt --json broken.json", "broken.json exists; name a new file"),
    ("masks compare masks masks.pt --json broken.json --overwrite", "is no earlier result of this command"),
    ("masks compare masks masks.pt --json evaluated.json --overwrite", "evaluated.json is no earlier result of this"),
    ("masks compare masks masks.pt --json no/such.json", "there is no folder"),
    ("masks compare masks masks.pt --json user", "user is a folder; name a file in it"),
    ("masks compare masks masks.pt --plot file --overwrite", "file is no earlier result of this command"),
    ("masks compare masks masks.pt --plot no/such.png", "there is no folder"),
    ("masks distance masks", "missing argument"),
    ("masks distance missing masks", "there is no mask file at missing"),
    ("masks distance masks missing", "there is no mask file at missing"),
    ("masks distance masks masks.pt --json file", "file exists; name a new file"),
    ("masks show missing", "there is no mask file at missing"),
    ("masks show pickle.pt", "pickle.pt is refused"),
    ("masks show masks --json file/x.json", "file is a file, not a folder"),
    ("masks convert missing new.pt", "there is no mask file at missing"),
    ("masks convert masks masks.pt", "masks.pt exists; name a new file"),
    ("masks convert masks user", "is not masks that mlpt made"),
    ("masks convert masks new.pt --suffix mask", "--suffix is one of"),
    ("masks convert masks new.pt --another-base", "name them by --model"),
    ("masks nothing", "no such command 'nothing'; see `mlpt masks --help`"),
]


@pytest.mark.parametrize(("line", "says"), PRUNE + MASKS)
def test_input_that_cannot_be_used(workspace, line, says):
    workspace.refuses(line, says)


@pytest.mark.parametrize(("place", "says"), PLACES)
def test_a_place_that_is_somebodys(workspace, place, says):
    workspace.refuses(f"prune run --sparsity 0.5 --out {place}", says)
