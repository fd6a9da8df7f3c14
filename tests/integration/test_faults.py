"""Storage that fails under a run: a full disk, files cut short. Nothing is lost."""

import json
import resource
import signal

import pytest
from real_runs import Mlpt, metrics_of

pytestmark = pytest.mark.timeout(900)

IN_PROCESS = ["runtime.num_workers=0", "train.steps=60", "train.checkpoint_every=20", "train.log_every=1"]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """The losses of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    mlpt = Mlpt(folder, folder / "cache")
    code, output = mlpt.run("pretrain", *tiny, *IN_PROCESS, f"run_dir={folder / 'run'}")
    assert code == 0, output
    return losses(folder / "run")


def losses(run):
    return [json.dumps({key: line.get(key) for key in ("step", "loss", "held_out")}) for line in metrics_of(run)]


def one_line(output, words):
    last = [line for line in output.splitlines() if line.startswith("mlpt: ")]
    return len(last) == 1 and words in last[0] and "Traceback" not in output


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(mlpt, tiny, tmp_path):
    run = tmp_path / "run"
    code, output = mlpt.run(
        "pretrain", *tiny, *IN_PROCESS, f"run_dir={run}", "train.steps=30", "report.tensorboard=false"
    )
    assert code == 0, output
    whole = sorted(path.parent.name for path in run.glob("checkpoints/*/COMMITTED"))
    process = mlpt.start("pretrain", "--resume", run, "train.steps=60", preexec_fn=lambda: limit_file_size(100_000))
    assert process.wait(timeout=600) == 2, mlpt.output()
    assert one_line(mlpt.output(), "no room to write"), mlpt.output()
    assert whole == sorted(path.parent.name for path in run.glob("checkpoints/*/COMMITTED"))
    code, output = mlpt.run("pretrain", "--resume", run)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["model.safetensors", "state.json", "COMMITTED"])
def test_a_file_cut_short_costs_one_checkpoint_and_no_loss(mlpt, tiny, tmp_path, undisturbed, damaged):
    run = tmp_path / "run"
    code, output = mlpt.run("pretrain", *tiny, *IN_PROCESS, f"run_dir={run}")
    assert code == 0, output
    (run / "summary.json").unlink()  # as if it had died just before its end
    newest = max(run.glob("checkpoints/step_*"))
    content = (newest / damaged).read_bytes()
    (newest / damaged).write_bytes(content[: len(content) // 2])
    code, output = mlpt.run("pretrain", "--resume", run)
    assert code == 0, output
    assert "resumed at step 40" in output
    assert losses(run) == undisturbed


def limit_file_size(limit):
    """As a full disk: writes past `limit` bytes of a file fail."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
