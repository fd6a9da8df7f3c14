"""Rows out of files: what GLUE's TSVs really contain, and what happens to rows that can't be used."""

import json
import re

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from mlpt.errors import UserError
from mlpt.tasks import OwnTask, TaskSource, load_task, read_task_file


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def test_quotes_in_a_glue_tsv_are_plain_characters(tmp_path):
    write(tmp_path, "SST-2/dev.tsv", 'sentence\tlabel\n"an open quote\t1\nplain\t0\n')
    rows = load_task("sst2", TaskSource(data_dir=str(tmp_path))).splits["dev"]
    assert [(row.first, row.label) for row in rows] == [('"an open quote', 1), ("plain", 0)]


def test_line_ends_inside_unicode_texts_do_not_cut_rows(tmp_path):
    write(tmp_path, "SST-2/dev.tsv", "sentence\tlabel\r\nnext\x85line\u2028here\t1\r\n\r\nx y\t0\r\n")
    rows = load_task("sst2", TaskSource(data_dir=str(tmp_path))).splits["dev"]
    assert [row.first for row in rows] == ["next\x85line\u2028here", "x y"]
    assert [row.label for row in rows] == [1, 0]


def test_cola_has_no_header_but_its_test_file_has(tmp_path):
    write(tmp_path, "GLUE/CoLA/train.tsv", "gj04\t1\t\tFine.\ngj04\t0\t*\tNot fine.\n")
    write(tmp_path, "GLUE/CoLA/test.tsv", "index\tsentence\n7\tWho knows.\n")
    data = load_task("cola", TaskSource(data_dir=str(tmp_path)))
    assert [(row.first, row.label) for row in data.splits["train"]] == [("Fine.", 1), ("Not fine.", 0)]
    assert [(row.index, row.first, row.label) for row in data.splits["test"]] == [(7, "Who knows.", None)]


def test_a_byte_order_mark_is_not_part_of_a_column_name(tmp_path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path, "MRPC/msr_paraphrase_test.txt", "\ufeff" + header + "1\t10\t11\tone\ttwo\n")
    rows = load_task("mrpc", TaskSource(data_dir=str(tmp_path))).splits["test"]
    assert (rows[0].index, rows[0].first, rows[0].second, rows[0].label) == (0, "one", "two", 1)


def test_mnli_columns_are_found_by_name_and_both_dev_sets_are_kept_apart(tmp_path):
    ahead = "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2\tlabel1\t"
    front = "0\t\t\t\t\t\t\t\tone\ttwo\t"
    write(tmp_path, "MNLI/train.tsv", f"{ahead}gold_label\n{front}x\tneutral\n")
    for split, label in (("matched", "contradiction"), ("mismatched", "entailment")):
        rest = "label2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        write(tmp_path, f"MNLI/dev_{split}.tsv", f"{ahead}{rest}{front}neutral\ta\tb\tc\td\t{label}\n")
    data = load_task("mnli", TaskSource(data_dir=str(tmp_path)))
    assert {split: rows[0].label for split, rows in data.splits.items()} == {
        "train": 2,
        "dev_matched": 0,
        "dev_mismatched": 1,
    }
    assert data.dev_splits == ["dev_matched", "dev_mismatched"]


def test_short_rows_of_qqp_are_counted_and_named(tmp_path):
    rows = "".join(f"{n}\t1\t2\tis it {n}\tis it so\t{n % 2}\n" for n in range(200))
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    path = write(tmp_path, "QQP/train.tsv", header + rows + "5\t1\n")
    data = load_task("qqp", TaskSource(data_dir=str(tmp_path)))
    assert len(data.splits["train"]) == 200
    assert data.warnings() == [f"1 of 201 rows of {path} are malformed ({path}:202: has 2 columns instead of 6)"]


def test_an_unknown_label_is_a_malformed_row_and_too_many_of_them_an_error(tmp_path):
    path = write(tmp_path, "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb\tmaybe\n")
    with pytest.raises(UserError, match="1 of 2 rows") as error:
        load_task("rte", TaskSource(data_dir=str(tmp_path)))
    assert f"{path}:3: has label 'maybe'" in str(error.value)
    rows = load_task("rte", TaskSource(data_dir=str(tmp_path), max_malformed_share=0.5)).splits["dev"]
    assert [row.label for row in rows] == [0]


@pytest.mark.parametrize("score", ["5.2", "nan", "-1", "four"])
def test_a_similarity_outside_zero_to_five_is_malformed(tmp_path, score):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    write(tmp_path, "STS-B/dev.tsv", header + f"0\tg\tf\ty\t0\tn\tn\ta\tb\t{score}\n")
    with pytest.raises(UserError, match="has score"):
        load_task("stsb", TaskSource(data_dir=str(tmp_path)))


def test_a_test_file_must_be_whole(tmp_path):
    rows = "".join(f"{n}\ta\tb\n" for n in range(500))
    write(tmp_path, "RTE/test.tsv", "index\tsentence1\tsentence2\n" + rows + "500\tonly one\n")
    with pytest.raises(UserError, match="a test set needs every row"):
        load_task("rte", TaskSource(data_dir=str(tmp_path)))


def test_bytes_that_are_not_utf8_are_counted(tmp_path):
    path = tmp_path / "SST-2" / "dev.tsv"
    path.parent.mkdir()
    path.write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t0\n")
    data = load_task("sst2", TaskSource(data_dir=str(tmp_path), max_malformed_share=0.5))
    assert len(data.splits["dev"]) == 1
    assert "dev.tsv:3: is not UTF-8" in data.warnings()[0]


def test_own_files_are_read_by_named_columns_from_every_format(tmp_path):
    rows = [{"body": 'He said "hi", then left', "mood": "good"}, {"body": "rain", "mood": "bad"}]
    write(tmp_path, "a.csv", 'body,mood\n"He said ""hi"", then left",good\nrain,bad\n')
    write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        own = OwnTask(name="mood", train=str(tmp_path / f"a.{suffix}"), first="body", label="mood")
        data = load_task("mood", TaskSource(own=(own,)))
        assert data.task.labels == ("bad", "good")
        assert [(row.first, row.label) for row in data.splits["train"]] == [(rows[0]["body"], 1), ("rain", 0)]


def test_long_fields_and_fields_of_several_lines_are_read(tmp_path):
    long, verse = "long " * 50_000, 'one\n"two", three\r\n\nfour'
    quoted = verse.replace('"', '""')
    write(tmp_path, "a.csv", f'text,label\n{long},good\n"{quoted}",bad\nlast,good\n')
    own = OwnTask(name="mood", train=str(tmp_path / "a.csv"), first="text")
    rows = load_task("mood", TaskSource(own=(own,))).splits["train"]
    assert [row.first for row in rows] == [long, verse, "last"]


@pytest.mark.parametrize("later", ['a "good" one,good', "never closed,good"])
def test_a_quote_that_swallows_rows_is_one_line_that_says_where_it_opens(tmp_path, later):
    plain = "fine,good\nwet,bad\n" * 450
    write(tmp_path, "a.csv", f'text,label\nrain,bad\n"an open quote,good\n{plain}{later}\n{plain}')
    own = OwnTask(name="mood", train=str(tmp_path / "a.csv"), first="text", labels=("bad", "good"))
    with pytest.raises(UserError, match=r"a\.csv:3: has a quote that is not closed") as error:
        load_task("mood", TaskSource(own=(own,), max_malformed_share=0.5))
    assert "\n" not in str(error.value)


def test_a_quote_inside_of_a_quoted_line_is_a_malformed_row(tmp_path):
    write(tmp_path, "a.csv", 'text,label\n"a "good" one",good\n5" wide,bad\nfine,good\n')
    own = OwnTask(name="mood", train=str(tmp_path / "a.csv"), first="text")
    data = load_task("mood", TaskSource(own=(own,), max_malformed_share=0.5))
    assert [row.first for row in data.splits["train"]] == ['5" wide', "fine"]
    assert (data.reports[0].rows, data.reports[0].malformed) == (3, 1)
    assert "a.csv:2: has a quote" in data.warnings()[0]


def test_a_missing_column_names_those_that_are_there(tmp_path):
    write(tmp_path, "a.csv", "body,mood\nx,good\ny,bad\n")
    own = OwnTask(name="mood", train=str(tmp_path / "a.csv"), first="text", label="mood")
    with pytest.raises(UserError, match="no column 'text'; its columns: body, mood"):
        load_task("mood", TaskSource(own=(own,)))


def test_own_regressions_and_spans_are_read(tmp_path):
    write(tmp_path, "r.csv", "a,b,score\none,two,0.5\nx,y,-3\n")
    regression = OwnTask(
        name="r", kind="regression", train=str(tmp_path / "r.csv"), first="a", second="b", label="score"
    )
    assert [row.label for row in load_task("r", TaskSource(own=(regression,))).splits["train"]] == [0.5, -3.0]
    records = [
        {"q": "who", "c": "it was Ann", "answer": "Ann", "answer_start": 7},
        {"q": "where", "c": "it was Ann", "answer": None, "answer_start": None},
    ]
    write(tmp_path, "s.jsonl", "\n".join(json.dumps(row) for row in records))
    span = OwnTask(name="s", kind="span", train=str(tmp_path / "s.jsonl"), first="q", second="c", label="answer")
    rows = load_task("s", TaskSource(own=(span,))).splits["train"]
    assert [(row.label, row.answers, row.answer_start) for row in rows] == [(1, ("Ann",), 7), (0, (), -1)]


def test_an_unknown_task_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'sst2'"):
        load_task("sst-2", TaskSource(data_dir=str(tmp_path)))


def test_a_task_without_files_says_where_they_are_expected(tmp_path):
    with pytest.raises(UserError, match=r"no files of task 'sst2'.*GLUE/SST-2/train\.tsv"):
        load_task("sst2", TaskSource(data_dir=str(tmp_path)))


def test_the_place_where_files_are_expected_names_the_benchmarks_folder_once(tmp_path):
    (tmp_path / "GLUE").mkdir()
    with pytest.raises(UserError) as error:
        load_task("cola", TaskSource(data_dir=str(tmp_path / "GLUE")))
    assert f"expected for example {tmp_path}/GLUE/CoLA/train.tsv" in str(error.value)


def test_a_task_file_describes_own_data_with_paths_from_its_own_folder(tmp_path, monkeypatch):
    write(tmp_path, "mood/train.csv", "text,mood\nfine,good\nwet,bad\n")
    file = write(tmp_path, "mood/task.yaml", "name: mood\ntrain: train.csv\nfirst: text\nlabel: mood\n")
    monkeypatch.chdir(tmp_path.parent)
    (own,) = read_task_file(str(file))
    data = load_task("mood", TaskSource(own=(own,)))
    assert [(row.first, data.task.labels[row.label]) for row in data.splits["train"]] == [
        ("fine", "good"),
        ("wet", "bad"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: mood\ntrain: t.csv\nfirst: a\nlable: b\n", "unknown setting 'lable'; did you mean 'label'?"),
        ("- name: mood\n  first: a\n", "give train or dev"),
        ("just words", "describes no task"),
        ("[", "is not YAML"),
    ],
)
def test_a_task_file_that_says_nothing_usable_is_one_line(tmp_path, text, says):
    file = write(tmp_path, "task.yaml", text)
    with pytest.raises(UserError) as error:
        read_task_file(str(file))
    assert str(error.value).removeprefix("the task file ").startswith(str(file))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_own_tasks_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "train.csv", "text,mood\nfine,good\nwet,bad\n")
    file = write(tmp_path, "other/task.yaml", "name: mood\ntrain: ~/train.csv\nfirst: text\nlabel: mood\n")
    named = OwnTask(name="mood", train="~/train.csv", first="text", label="mood")
    assert read_task_file(str(file)) == (named,)
    assert load_task("mood", TaskSource(own=(named,))).task.labels == ("bad", "good")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_label_that_is_no_number_is_a_gap(tmp_path, suffix):
    rows = [{"text": "a", "label": 0.0}, {"text": "b", "label": 1.0}, {"text": "c", "label": float("nan")}]
    if suffix == "jsonl":
        write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    own = OwnTask(name="odd", train=str(tmp_path / f"a.{suffix}"), first="text")
    data = load_task("odd", TaskSource(own=(own,), max_malformed_share=0.5))
    assert data.task.labels == ("0", "1")
    assert [row.label for row in data.splits["train"]] == [0, 1]
    assert data.reports[0].malformed == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("val.jsonl", f'{{"idx": {5000 * "1"}}}\n', "val.jsonl:1: is not a JSON object"),
        ("val.jsonl", 90000 * "[", "val.jsonl:1: is not a JSON object"),
        ("val.jsonl", '{"idx": Infinity, "premise": "a", "hypothesis": "b"}', "has inf instead of an integer in 'idx'"),
    ],
)
def test_a_line_of_json_that_no_row_can_be_is_counted_as_malformed(tmp_path, name, content, says):
    write(tmp_path, f"SuperGLUE/CB/{name}", content)
    with pytest.raises(UserError, match=re.escape(says)):
        load_task("cb", TaskSource(data_dir=str(tmp_path)))


def test_a_quote_that_nothing_closes_is_named_by_its_line(tmp_path):
    file = write(tmp_path, "mood.csv", 'text,label\n"a,fine\n","fine"\n"never closed\n' + 20000 * "ten bytes\n")
    with pytest.raises(UserError, match=r"mood\.csv:4: has a quote that is not closed"):
        load_task("mood", TaskSource(own=(OwnTask(name="mood", train=str(file), first="text"),)))


def test_a_missing_task_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read the task file"):
        read_task_file(str(tmp_path / "none.yaml"))


def test_a_task_without_a_source_asks_for_one():
    with pytest.raises(UserError, match="give --data-dir"):
        load_task("sst2", TaskSource())


def test_the_diagnostic_set_comes_with_mnli_whose_model_predicts_it(tmp_path):
    columns = "index\ta\tb\tc\td\te\tf\tg\tsentence1\tsentence2\tgold_label\n"
    write(tmp_path, "MNLI/train.tsv", columns + "0" + "\t" * 8 + "one\ttwo\tneutral\n")
    assert "ax" not in load_task("mnli", TaskSource(data_dir=str(tmp_path))).splits
    write(tmp_path, "diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2\n0\tone\ttwo\n")
    data = load_task("mnli", TaskSource(data_dir=str(tmp_path)))
    assert data.test_splits == ["ax"]
    assert [(row.first, row.second, row.label) for row in data.splits["ax"]] == [("one", "two", None)]
