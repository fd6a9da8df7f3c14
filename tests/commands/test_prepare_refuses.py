"""`mlpt prepare` on bad input: one line, exit code 2, nothing written."""

import pytest

LONG = "n" * 300
SMALL = "--set vocab_size=200 --set block_size=32"

TEXTS = [
    ("prepare --out new", "missing argument 'sources'"),
    ("prepare '' --out new", "name at least one file"),
    ("prepare missing.txt --out new", "missing.txt: there is no such file or folder"),
    ("prepare 'missing[bold].txt' --out new", "missing[bold].txt"),
    ("prepare 'no*.txt' --out new", "no*.txt holds no .txt"),
    ("prepare empty.txt --out new", "empty.txt is empty"),
    ("prepare empty --out new", "empty holds no .txt"),
    ("prepare user --out new", "user holds no .txt"),
    ("prepare image.png --out new", "image.png: only .txt"),
    ("prepare file --out new", "convert it or name it so"),
    ("prepare short.txt --out new", "the text is one document"),
    ("prepare latin.txt --out new", "is not UTF-8 text (byte 0xe9)"),
    ("prepare text.parquet --out new", "is not a whole parquet file"),
    ("prepare broken.jsonl --out new", "broken.jsonl, line 2 is not JSON"),
    ("prepare other.jsonl --out new", "has no string 'text'"),
    ("prepare link --out new", "link: there is no such file or folder"),
    ("prepare xyz://bucket/text --out new", "Protocol not known: xyz"),
    ("prepare hub: --out new", "'hub:' names no dataset"),
    ("prepare my=missing.txt --out new", "write ./my=missing.txt for a file of that name"),
]
OUTPUTS = [
    ("prepare text.txt", "missing option '--out'"),
    ("prepare s3:// --out new", "s3:// names no place; write for example s3://bucket/folder"),
    (
        "prepare text.txt --out new --set vocab_size=9999999999",
        "setting 'data.vocab_size': Input should be less",
    ),
    ("prepare text.txt --out ''", "an empty path was given"),
    ("prepare text.txt --out file", "file is a file; name a folder"),
    ("prepare text.txt --out file/new", "file is a file, not a folder; check the path"),
    ("prepare text.txt --out user", "user is not empty (it holds notes.md) and is not prepared text that mlpt made"),
    ("prepare text.txt --out user --overwrite", "is not empty (it holds notes.md)"),
    ("prepare text.txt --out run --overwrite", "is not prepared text that mlpt made"),
    ("prepare text.txt --out xyz://bucket/new", "Protocol not known: xyz"),
    (f"prepare text.txt --out {LONG}", "the name is too long; choose a shorter one"),
    (f"prepare text.txt --out blocks {SMALL} --set block_size=64", "block_size=32, not 64; name another folder"),
    (f"prepare other.jsonl --out blocks {SMALL} --overwrite", "has no string 'text'"),
    (f"prepare short.txt --out blocks {SMALL} --overwrite", "the text is one document"),
]
SETTINGS = [
    ("--set vocab_size=10", "vocab_size 10 has no room"),
    ("--set vocab_size=many", "setting 'data.vocab_size': Input should be a valid integer"),
    ("--set block_size=3", "setting 'data.block_size': Input should be greater than or equal to 4"),
    ("--set block_size=70000", "less than or equal to 65535"),
    ("--set packing=tight", "setting 'data.packing': Input should be 'full', 'document'"),
    ("--set dev_share=2", "setting 'data.dev_share': Input should be less than 1"),
    ("--set dev_share=0.6 --set test_share=0.5", "setting 'data': dev_share and test_share leave no text"),
    ("--set blocksize=64", "unknown setting 'data.blocksize'; did you mean 'data.block_size'?"),
    ("--set seq_len=64", "did you mean 'data.block_size'? (tokens a block, special ones included)"),
    ("--set novalue", "'novalue' is not a setting: write key=value"),
    ("--set tokenizer=./missing", "cannot load a tokenizer from ./missing"),
    ("--set tokenizer=file", "file has no [PAD], [UNK], [CLS], [SEP], [MASK]"),
    ("--set tokenizer=[a,b]", "setting 'data.tokenizer': Input should be a valid string"),
    ("--set seed=-1", "setting 'data.seed'"),
    ("--set workers=0", "setting 'data.workers'"),
    ("--set max_bytes=0", "setting 'data.max_bytes'"),
    ("--set 'vocab_size=[3'", "the value of vocab_size cannot be read as YAML"),
    ("--set seed=2026-13-45", "the value of seed cannot be read as YAML"),
    ("--no-such-option", "no such option: --no-such-option; see `mlpt prepare --help`"),
]


@pytest.mark.parametrize(("line", "says"), TEXTS + OUTPUTS)
def test_a_text_or_a_place_that_cannot_be_used(workspace, line, says):
    workspace.refuses(line, says)


@pytest.mark.parametrize(("options", "says"), SETTINGS)
def test_a_setting_that_cannot_be(workspace, options, says):
    workspace.refuses(f"prepare text.txt --out new {options}", says)


def test_a_path_with_an_equals_sign_is_a_path(own_workspace):
    ended = own_workspace.run(f"prepare 'two words/lr=3e-4.txt' --out 'out of=this' {SMALL}")
    assert ended.code == 0, ended
    assert (own_workspace.folder / "out of=this" / "manifest.json").is_file()
