"""`mlpt tune`, `study`, `bench`, `doctor` and no command at all: one line for bad input, no Ray, nothing written."""

import pytest

TUNE = [
    ("tune", "give one space (mlpt tune --list shows them)"),
    ("tune nothing", "there is no space 'nothing'; shipped: "),
    ("tune missing.py", "there is no file missing.py"),
    ("tune space.py", "space.py defines no `space = Space(...)`"),
    ("tune raises.py", "raises.py cannot be run: ZeroDivisionError"),
    ("tune leaves.py", "leaves.py cannot be run: SystemExit: 3"),
    ("tune nothing_to_draw.py sweep.folder=new", "no value of 'train.optimizer.lr' can be drawn"),
    ("tune sampling sweep=3", "setting 'sweep': needs settings of its own, as in {key: value} (got 3)"),
    ("tune sampling optimiser", "give one space"),
    ("tune sampling sweep.folder=user", "user is not empty (it holds notes.md) and is not a sweep that mlpt made"),
    ("tune sampling sweep.folder=user --overwrite", "is not empty (it holds notes.md)"),
    ("tune sampling sweep.folder=run --overwrite", "is not a sweep that mlpt made"),
    ("tune sampling sweep.folder=file", "file is a file; name a folder"),
    ("tune sampling sweep.folder=file/new", "file is a file, not a folder"),
    ("tune sampling sweep.folder=s3://bucket/sweep", "a sweep lives in a folder that all nodes see"),
    ("tune sampling sweep.folder=new sweep.trials=0", "setting 'sweep.trials': Input should be greater than 0"),
    ("tune sampling sweep.folder=new sweep.trials=many", "setting 'sweep.trials'"),
    ("tune sampling sweep.folder=new sweep.trial=3", "unknown setting 'sweep.trial'; did you mean 'sweep.trials'?"),
    ("tune sampling sweep.folder=new sweep.search=best", "setting 'sweep.search': Input should be 'random', 'grid'"),
    ("tune sampling sweep.folder=new sweep.search=grid", "search=grid needs a tune.grid_search parameter"),
    ("tune sampling sweep.folder=new sweep.scheduler=best", "setting 'sweep.scheduler'"),
    ("tune sampling sweep.folder=new lr=3", "did you mean 'train.optimizer.lr'? (peak learning rate)"),
    ("tune sampling sweep.folder=new train.optimizer.lr=-1", "setting 'train.optimizer.lr'"),
    ("tune task_sampling sweep.folder=new", "fine-tunes a model; say which: model=FOLDER"),
    ("tune --resume missing", "missing holds no sweep: it has no sweep.yaml"),
    ("tune --resume run", "run holds no sweep"),
    ("tune --resume run sampling", "or --resume FOLDER and nothing else"),
    ("tune --resume run --overwrite", "or --resume FOLDER and nothing else"),
]
OTHERS = [
    ("study latin.yaml", "latin.yaml is not UTF-8 text"),
    ("study deep.yaml", "deep.yaml nests brackets or sections too deeply"),
    ("bench nothing", "there is no benchmark 'nothing'; there are step"),
    ("bench step --json no/such.json", "there is no folder"),
    ("bench step --json file", "file exists; name a new file"),
    ("bench step --json file --overwrite", "file is no earlier result of this command"),
    ("bench step --json user", "user is a folder"),
    ("doctor extra", "got unexpected extra argument"),
    ("doctor --nothing", "no such option: --nothing"),
    ("nothing", "no such command 'nothing'; see `mlpt --help`"),
    ("pretrian", "pretrain"),
    ("--nothing", "no such option: --nothing"),
]

NO_PATHS = [
    *(f"{command} {{}}" for command in ("runs", "report", "watch", "export --out new", "evaluate", "study")),
    *("pretrain --resume {}", "tune --resume {}", "pretrain recipe.yaml run_dir={}", "evaluate run --blocks {}"),
    *("tune sampling sweep.folder={}", "study mixtures --out {}", "study two_moons --out {}", "prepare {} --out new"),
    *("evaluate run --suite cloze={}", "evaluate run --suite pos={}", "pretrain recipe.yaml data.tokenizer={}"),
    *("finetune run --tasks docs_package --out {}", "finetune {} --tasks docs_package", "report run --out {}"),
]


@pytest.mark.parametrize("line", NO_PATHS)
@pytest.mark.parametrize("path", ["~nosuchuser/x", "circle/x"])
def test_a_home_of_nobody_and_links_in_a_circle(workspace, line, path):
    workspace.refuses(line.format(path), path.partition("/")[0])


@pytest.mark.parametrize(
    "line", ["runs {}", "report {}", "pretrain recipe.yaml run_dir={}", "prepare text.txt --out {}"]
)
def test_a_uri_that_is_none(workspace, line):
    workspace.refuses(line.format("s3://[x"), "s3://[x")


@pytest.mark.parametrize(("line", "says"), TUNE + OTHERS)
def test_input_that_cannot_be_used(workspace, line, says):
    workspace.refuses(line, says)


def test_ctrl_c_is_one_line_in_commands_that_save_nothing_of_their_own(workspace, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlpt.sparsity.commands.show", stop)
    ended = workspace.run("masks show masks")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.startswith("mlpt: stopped; the same command goes on where it was")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("damage", ["space: [", "words: [a]\n", "", "- a\n"])
def test_a_damaged_sweep(own_workspace, damage):
    (own_workspace.folder / "sweep").mkdir()
    (own_workspace.folder / "sweep/sweep.yaml").write_text(damage)
    ended = own_workspace.run("tune --resume sweep")
    assert ended.code == 2
    assert "sweep.yaml is damaged and does not say which sweep this is" in ended.err


def test_a_failed_start_of_a_sweep_leaves_nothing(workspace):
    workspace.refuses("tune sampling sweep.folder=new runtime.address=127.0.0.1:9", "cannot reach Ray")
