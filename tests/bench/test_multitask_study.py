"""The study of samplers runs from end to end on small files, resumes, and tabulates what was found."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from mlpt.bench.multitask_study import METHODS, Study, main, run_study


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[str, str]:
    """A saved encoder and a folder of two GLUE tasks."""
    model, data = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("GLUE")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "ran"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(model)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(model)
    write_task(data / "RTE", ["entailment", "not_entailment"])
    write_task(data / "WNLI", ["0", "1"])
    return str(model), str(data)


def write_task(folder: Path, labels: list[str]) -> None:
    folder.mkdir()
    for split, rows in (("train", 12), ("dev", 6)):
        lines = [f"{i}\tthe cat sat\tthe dog ran\t{labels[i % 2]}" for i in range(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")


def test_every_method_gets_the_same_steps_and_a_line_with_its_spread(places, tmp_path):
    methods = ("single-task", "CA-MTL, uniform")
    sizes = {"steps": 2, "batch_size": 4, "max_length": 16}
    study = Study(places[0], places[1], tmp_path, ("rte", "wnli"), seeds=(1, 2), **sizes, methods=methods)
    configs = [config for _, config in study.runs()]
    assert [config.max_steps for config in configs] == [2, 2, 4] * 2
    table = run_study(study)
    lines = table.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["majority", *methods]
    assert lines[-1].count("±") == 4  # two tasks, their mean, and the mean of each metric's own maxima
    written = (tmp_path / "study.md").read_text()
    assert written == table
    assert run_study(study) == table  # finished runs are read back


def test_the_published_method_scores_at_every_step_and_freezes_the_lower_half(places, tmp_path):
    configs = dict(Study(places[0], places[1], tmp_path, seeds=(1,)).runs())
    assert set(configs) == set(METHODS)
    own = configs["CA-MTL, MT-uncertainty, lower half frozen"]
    assert (own.sampler.rescore_every, own.sampler.score, own.freeze) == (1, "paper", "lower_half")
    cheaper = configs["CA-MTL, MT-uncertainty every 3 steps"]
    assert (cheaper.sampler.rescore_every, cheaper.freeze) == (3, "none")


def test_a_missing_task_is_one_line_and_exit_code_2(places, tmp_path, capsys):
    code = main([places[0], "--data-dir", places[1], "--out", str(tmp_path), "--tasks", "cola", "--max-length", "16"])
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no files of task 'cola'")
