"""`mlpt finetune` on bad input: one line before any training, nothing lost or written."""

import pytest

MANY = f"seeds={list(range(99))}".replace(" ", "")
WORDS = [
    ("finetune", "missing argument"),
    ("finetune run", "no task is named"),
    ("finetune learning_rates=[1e-4] --tasks docs_package", "no model is named, only 'learning_rates=[1e-4]'"),
    ("finetune sst2 --tasks rte", "'sst2' is a task and stands where the model is expected"),
    ("finetune '' --tasks docs_package --out new", "a model needs a name"),
    ("finetune missing.yaml --tasks sst2", "there is no recipe file missing.yaml"),
    ("finetune broken.yaml --tasks sst2", "broken.yaml is not YAML"),
    ("finetune list.yaml --tasks sst2", "list.yaml holds no settings"),
    ("finetune latin.yaml --tasks sst2", "latin.yaml is not UTF-8 text"),
    ("finetune typo.yaml --tasks sst2", "unknown setting 'trian'"),
    ("finetune run --task-file missing.yaml", "missing.yaml"),
    ("finetune run --task-file broken.yaml", "broken.yaml is not YAML"),
    ("finetune run --task-file list.yaml", "list.yaml describes no task"),
    ("finetune run --task-file latin.yaml", "latin.yaml is not UTF-8 text"),
    ("finetune run --task-file deep.yaml", "deep.yaml nests brackets or sections too deeply"),
    ("finetune run --task-file user", "cannot read the task file user: this is a folder, not a file"),
    ("finetune run --task-file uneven.yaml --out new", "uneven.jsonl:2: has 2 words and 1 labels"),
    ("finetune run --task-file wordless.yaml --out new", "wordless.jsonl:2: has no words"),
    ("finetune run --task-file unknown.yaml --out new", "unknown.jsonl:2: has label 'B-Y', expected one of B-X, O"),
    ("finetune run --multitask --task-file uneven.yaml --out new", "uneven.jsonl:2: has 2 words and 1 labels"),
    ("finetune run --preset nothing --tasks sst2", "there is no preset 'nothing'"),
    ("finetune run --preset tamt_mnli --multitask --tasks mnli,rte", "presets are protocols of single tasks"),
    ("finetune run --tasks sst2", "task 'sst2' needs data: give --data-dir FOLDER"),
    ("finetune run --tasks sst3", "unknown task 'sst3'; did you mean 'sst2'?"),
    ("finetune run --tasks sst2 --data-dir missing", "--data-dir missing is not a folder"),
    ("finetune run --tasks sst2 --data-dir user", "no files of task 'sst2' under user"),
    ("finetune run --tasks sst2 --data-dir file", "--data-dir file is not a folder"),
    ("finetune run --tasks docs_package,sst3", "unknown task 'sst3'"),
    ("finetune run --tasks docs_package docs_package", "tasks names a value twice"),
    ("finetune ./missing --tasks docs_package", "./missing"),
    ("finetune user --tasks docs_package", "cannot load a model from 'user'"),
    ("finetune 'cut model' --tasks docs_package", "cannot load a model from 'cut model'"),
    ("finetune 'unfinished run' --tasks docs_package", "unfinished run has no model yet"),
    ("finetune s3://bucket/run --tasks docs_package", "is a URI, and models are loaded from folders"),
]
SETTINGS = [
    ("--out file", "file is a file; name a folder"),
    ("--out file/new", "file is a file, not a folder"),
    ("--out user", "user is not empty (it holds notes.md) and is not a fine-tuning that mlpt made"),
    ("--out user --overwrite", "is not empty (it holds notes.md)"),
    ("--out run --overwrite", "is not a fine-tuning that mlpt made"),
    ("--out ''", "an empty path was given"),
    ("--masks missing", "there is no mask file at"),
    ("--masks user", "there is no mask file at"),
    ("--masks pickle.pt", "pickle.pt is refused"),
    ("--masks masks --dense", "dense and masks exclude each other"),
    ("learning_rates=[-1]", "setting 'learning_rates.0': Input should be greater than 0"),
    ("learning_rates=[0]", "setting 'learning_rates.0': Input should be greater than 0"),
    ("learning_rates=fast", "setting 'learning_rates.0': Input should be a valid number"),
    ("lr=3e-4", "did you mean 'learning_rates' (peak rates) or 'optimizer.lr' (peak learning rate)?"),
    ("seeds=[]", "setting 'seeds'"),
    ("seeds=[1,1]", "seeds names a value twice"),
    ("epochs=0", "setting 'epochs': Input should be greater than 0"),
    ("max_length=4", "setting 'max_length'"),
    ("metric=nothing", "has no metric 'nothing'; it has accuracy, macro_f1"),
    ("'metric={sts2: pearson}'", "metric names 'sts2', which is no task; write it as in metric={TASK: ...}"),
    ("'select_split={sst: dev}'", "select_split names 'sst', which is no task"),
    ("precision=fp8", "setting 'precision'"),
    ("keep_model=all", "setting 'keep_model'"),
    ("steps=9", "'max_steps'"),
    (f"--workers 99 {MANY}", "99 workers need 99 CPUs"),
    ("--workers x", "invalid value for '--workers'"),
    ("--multitask --out user", "is not a multi-task fine-tuning that mlpt made"),
    ("--workers 0", "invalid value for '--workers': Input should be greater than or equal to 1"),
    ("--multitask conditional.max_length=0", "setting 'conditional.max_length': Input should be greater than 0"),
    ("--multitask encoder=other", "setting 'encoder'"),
    ("--multitask sampler.rule=best", "there is no rule 'best'; there are mt_uncertainty"),
    ("--multitask optimizer.rate=1", "did you mean 'optimizer.lr'? (peak learning rate)"),
]


@pytest.mark.parametrize(("line", "says"), WORDS)
def test_words_that_name_nothing(workspace, line, says):
    workspace.refuses(line, says)


@pytest.mark.parametrize(("words", "says"), SETTINGS)
def test_a_setting_or_a_place_that_cannot_be(workspace, words, says):
    out = "" if "--out" in words else "--out new"
    workspace.refuses(f"finetune run --tasks docs_package {out} {words}", says)
