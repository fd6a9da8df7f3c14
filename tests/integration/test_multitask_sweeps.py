"""`mlpt tune` over task samplers: real Ray Tune, a model pretrained a moment ago, tasks from files."""

import json

import pyarrow.parquet as pq
import pytest
from real_runs import kill_the_process_that_writes
from waiting import wait_until

SPACE = '''"""Which sampler?"""
from ray import tune
from mlpt.tuning.space import Space
space = Space(
    parameters={"sampler.rule": tune.grid_search(["uniform", "proportional"])},
    metrics={"dev/mean": "max"}, job="multitask", tokens=80_000, trials=1, evaluations=8,
    search="grid", scheduler="none", base={"encoder": "shared", "conditional.max_length": 16, "batch_size": 8},
)
'''


@pytest.fixture
def sweep(mlpt, tiny, tmp_path):
    """Words of a sweep over two tasks of short texts, after a moment of pretraining."""
    run = tmp_path / "run"
    short = ("train.steps=2", "runtime.num_workers=0", "model.architecture=bert")
    code, output = mlpt.run("pretrain", *tiny, *short, f"run_dir={run}")
    assert code == 0, output
    own = [{"name": name, "first": "text", **write_rows(tmp_path, name)} for name in ("parity", "size")]
    space = tmp_path / "mine.py"
    space.write_text(SPACE)
    words = [f"model={run}", "tasks=[parity, size]", f"source.own={json.dumps(own)}", "optimizer.lr=1e-3"]
    return ["tune", space, *words, f"sweep.folder={tmp_path / 'sweep'}"]


def write_rows(folder, name):
    paths = {}
    for split, count in (("train", 200), ("dev", 40)):
        rows = [
            {"text": f"number {n}", "label": ["yes", "no"][n % 2 if name == "parity" else n > count // 2]}
            for n in range(count)
        ]
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths[split] = str(path)
    return paths


@pytest.mark.slow
def test_samplers_are_compared_a_crashed_trial_goes_on_and_the_winner_is_a_recipe(mlpt, sweep, tmp_path):
    folder = tmp_path / "sweep"
    process = mlpt.start(*sweep, "sweep.concurrent=1")
    saved = wait_until(
        lambda: next(iter(folder.glob("trials/*/checkpoints/step_*/COMMITTED")), None) or process.poll() is not None
    )
    trial = saved.parents[2]
    kill_the_process_that_writes(trial / "metrics.jsonl")
    process.wait(timeout=240)
    output = mlpt.output()
    assert process.returncode == 0, output
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 2, output
    for row in rows:
        assert row["dev/mean"] == pytest.approx((row["dev/parity"] + row["dev/size"]) / 2)
        assert row["tokens"] >= 80_000
    steps = [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    code, output = mlpt.run("finetune", folder / "best.yaml", "--multitask", "max_steps=4", "evaluate_every=4")
    assert code == 0, output
    result = json.loads((tmp_path / "finetuned" / "results.json").read_text())
    best = max(rows, key=lambda row: row["dev/mean"])
    assert (result["sampler"], result["steps"]) == (best["parameter/sampler.rule"], 4)
