"""Tokenizers are trained the same way every time, and stock vocabularies give the ids they are known for."""

import subprocess
import sys
from pathlib import Path

import pytest
from data_texts import sentences
from transformers import AutoTokenizer

from mlpt.data.tokenizers import load_tokenizer, train_tokenizer, vocabulary_hash
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError


def test_berts_bare_vocabulary_gives_its_known_ids(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizers/bert-base-uncased/vocab.txt"))
    assert tokenizer("Hello world")["input_ids"] == [101, 7592, 2088, 102]
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert Vocabulary.of(tokenizer) == Vocabulary(size=30522, pad=0, mask=103, cls=101, sep=102, unk=100)
    assert tokenizer.decode(tokenizer("unaffable!")["input_ids"], skip_special_tokens=True) == "unaffable!"
    folder = load_tokenizer(str(shared_data / "tokenizers/bert-base-uncased"))
    assert vocabulary_hash(folder) == vocabulary_hash(tokenizer)


def test_robertas_bare_folder_gives_its_known_ids(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizers/roberta-base"))
    assert tokenizer("Hello world")["input_ids"] == [0, 31414, 232, 2]
    assert tokenizer("Hello <mask>")["input_ids"] == [0, 31414, 50264, 2]
    assert tokenizer("a", "b")["input_ids"] == [0, 102, 2, 2, 428, 2]
    assert Vocabulary.of(tokenizer) == Vocabulary(size=50265, pad=1, mask=50264, cls=0, sep=2, unk=3)


def test_the_case_of_a_bare_vocabulary_is_found(tmp_path: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, "paris", "Paris"]) + "\n")
    assert load_tokenizer(str(tmp_path)).tokenize("Paris paris") == ["Paris", "paris"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, "paris"]) + "\n")
    assert load_tokenizer(str(tmp_path)).tokenize("Paris paris") == ["paris", "paris"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_the_same_in_every_process(kind: str) -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests/data')\n"
        "from data_texts import sentences\n"
        "from mlpt.data.tokenizers import *\n"
        f"print(vocabulary_hash(train_tokenizer('{kind}', lambda: iter(sentences(200)), 320)))"
    )
    root = Path(__file__).resolve().parents[2]
    runs = [
        subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    here = vocabulary_hash(train_tokenizer(kind, lambda: iter(sentences(200)), 320))
    assert {one.strip() for one in runs} == {here}


def test_a_trained_wordpiece_follows_bert_and_folds_case_when_asked(tmp_path: Path) -> None:
    texts = [*sentences(200), "The House Near Étoile"]
    folded = train_tokenizer("wordpiece", lambda: iter(texts), 150)
    assert len(folded) == 150
    assert folded.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert folded.tokenize("HOUSE é") == folded.tokenize("house e")
    kept = train_tokenizer("wordpiece", lambda: iter(texts), 150, lowercase=False)
    assert kept.tokenize("H") == ["H"]
    folded.save_pretrained(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert stock("the red house")["input_ids"] == folded("the red house")["input_ids"]
    assert Vocabulary.of(load_tokenizer(str(tmp_path))) == Vocabulary.of(folded)


def test_a_trained_bpe_follows_roberta_and_loses_nothing(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bpe", lambda: iter(sentences(200)), 300)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    text = "Übung 😀  two  spaces"
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_vocabulary_too_small_for_the_letters_is_refused() -> None:
    for kind in ("wordpiece", "bpe"):
        with pytest.raises(UserError, match="no room"):
            train_tokenizer(kind, lambda: iter(sentences(50)), 20)


def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "vocab.txt").write_text("hello\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bpe").mkdir()
    (tmp_path / "bpe/vocab.json").write_text("{")
    (tmp_path / "bpe/merges.txt").write_text("")
    for name in ("vocab.txt", "empty", "bpe", "absent/name"):
        with pytest.raises(UserError) as caught:
            load_tokenizer(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"), [(None, "has no tokenizer"), ("tokenizer_config.json", "has special tokens alone")]
)
def test_a_model_without_a_vocabulary_gets_no_invented_one(tmp_path: Path, file: str | None, message: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    if file is not None:
        (tmp_path / file).write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mask_token"):
        load_tokenizer(str(tmp_path))
