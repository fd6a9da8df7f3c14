"""`mlpt evaluate` and `mlpt export` on bad input: one line before the work, nothing lost or written."""

import pytest

EVALUATE = [
    ("evaluate ./missing --blocks blocks", "there is no folder './missing'"),
    ("evaluate '' --blocks blocks", "a model needs a name"),
    ("evaluate run/model", "is no run that remembers its text; name prepared blocks: --blocks FOLDER"),
    ("evaluate user", "user is no run that remembers its text"),
    ("evaluate 'cut model' --blocks blocks", "cannot load a masked language model from 'cut model'"),
    ("evaluate 'unfinished run'", "unfinished run has no model yet"),
    ("evaluate run --blocks missing", "missing is not a prepared folder"),
    ("evaluate run --blocks user", "user is not a prepared folder"),
    ("evaluate run --blocks 'cut blocks'", "manifest.json is damaged"),
    ("evaluate run --data-dir user", "--data-dir holds the rows of --tasks: name the tasks"),
    ("evaluate run --tasks sst2 --suite docs_package", "--suite and --tasks are two evaluations"),
    ("evaluate run --tasks sst2 --blocks blocks", "--blocks is the text of pretraining losses"),
    ("evaluate run --tasks docs_package rte", "several models belong to --suite"),
    ("evaluate run --masks missing", "there is no mask file at missing"),
    ("evaluate run --masks user", "there is no mask file at user"),
    ("evaluate run --masks pickle.pt", "pickle.pt is refused"),
    ("evaluate run --split all", "--split is one of train, dev, test, not 'all'"),
    ("evaluate run --padding some", "--padding is one of out, in, not 'some'"),
    ("evaluate run --batches x", "invalid value for '--batches'"),
    ("evaluate run --json no/such.json", "there is no folder"),
    ("evaluate run --json file", "file exists; name a new file, or replace it with --overwrite"),
    ("evaluate run --json file --overwrite", "file is no earlier result of this command, so it stays"),
    ("evaluate run --json user", "user is a folder; name a file in it"),
    ("evaluate run --json link/x.json", "there is no folder"),
    ("evaluate run --json ''", "an empty path was given"),
]
EXPORT = [
    ("export run", "missing option '--out'"),
    ("export ./missing --out new", "there is no folder './missing'"),
    ("export user --out new", "cannot load a masked language model from 'user'"),
    ("export 'cut model' --out new", "cannot load a masked language model from 'cut model'"),
    ("export 'unfinished run' --out new", "unfinished run has no model yet"),
    ("export run@best --out new", "has no checkpoint that is known to be the best"),
    ("export run@step=7 --out new", "has no checkpoint of step 7"),
    ("export user@best --out new", "user is no run"),
    ("export run --out file", "file is a file; name a folder"),
    ("export run --out file/new", "file is a file, not a folder; check the path"),
    ("export run --out user", "user is not empty (it holds notes.md) and is not an exported model that mlpt made"),
    ("export run --out user --overwrite", "is not empty (it holds notes.md)"),
    ("export run --out run/model", "run/model is not empty (it holds README.md) and is not an exported model"),
    ("export run --masks masks --out run/model", "run/model is not empty"),
    ("export run --masks masks --out run/model --overwrite", "is not an exported model that mlpt made"),
    (
        "export run --out exported",
        "exported holds an exported model; name a new folder, or replace it",
    ),
    ("export ./missing --out exported --overwrite", "there is no folder './missing'"),
    ("export run --masks missing --out new", "there is no mask file at missing"),
    ("export run --heads missing.npy --out new", "there is no head or neuron mask at missing.npy"),
    ("export run --heads cut.npy --out new", "cut.npy is not a NumPy array of plain numbers"),
    ("export run --heads flat.npy --out new", "flat.npy holds (3,)"),
    ("export run --heads objects.npy --out new", "objects.npy is not a NumPy array of plain numbers"),
    ("export run --heads heads.npy --masks masks --out new", "masks of single weights make no smaller model"),
    ("export run --heads heads.npy --masks masks --out exported --overwrite", "make no smaller model"),
    ("export run --neurons heads.npy --out new", "the neurons mask is (2, 2)"),
    ("export run --out new --json no/such.json", "there is no folder"),
    ("export run --out new --json file", "file exists; name a new file"),
    (f"export run --out {'n' * 300}", "the name is too long"),
]


@pytest.mark.parametrize(("line", "says"), EVALUATE + EXPORT)
def test_input_that_cannot_be_used(workspace, line, says):
    workspace.refuses(line, says)
