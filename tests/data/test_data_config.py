"""What is asked of data is what runs and what is written down, also where the text is prepared already."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from data_texts import sentences

from mlpt.config import load_run_config
from mlpt.data.config import OF_RUN, DataConfig
from mlpt.data.prepare import prepare
from mlpt.data.tokenizers import train_tokenizer
from mlpt.errors import UserError
from mlpt.settings import load_settings

MADE_WITH: dict[str, Any] = {"vocab_size": 150, "block_size": 16, "dev_share": 0.1, "test_share": 0.2, "seed": 3}


@pytest.fixture
def prepared(text_file: Path, tmp_path: Path) -> str:
    prepare(DataConfig(source=str(text_file), **MADE_WITH, workers=1), str(tmp_path / "prepared"))
    return str(tmp_path / "prepared")


@pytest.mark.parametrize(
    ("asked", "had"),
    [
        ({"block_size": 128}, "block_size=16"),
        ({"vocab_size": 8192}, "vocab_size=150"),
        ({"lowercase": False}, "lowercase=True"),
        ({"tokenizer_bytes": 1000}, "tokenizer_bytes=33554432"),
        ({"tokenizer": "bpe"}, "tokenizer=wordpiece"),
        ({"packing": "document"}, "packing=full"),
        ({"documents": "lines"}, "documents=auto"),
        ({"dev_share": 0.3}, "dev_share=0.1"),
        ({"test_share": 0.1}, "test_share=0.2"),
        ({"max_bytes": 10_000}, "max_bytes=None"),
        ({"docs_bytes": 10_000}, "docs_bytes=None"),
        ({"seed": 4}, "seed=3"),
    ],
)
def test_what_a_prepared_folder_has_not_cannot_be_asked_of_it(prepared: str, asked: dict[str, Any], had: str) -> None:
    (key,) = asked
    with pytest.raises(UserError) as caught:
        load_run_config("quickstart", {"data": {"source": prepared, **asked}})
    assert str(caught.value).startswith(f"{prepared} is prepared, with {had}, and data.{key}=")
    assert "\n" not in str(caught.value)


def test_every_setting_of_data_is_asked_of_a_prepared_folder_or_is_none_of_it() -> None:
    mark = test_what_a_prepared_folder_has_not_cannot_be_asked_of_it.pytestmark[0]  # type: ignore[attr-defined]
    tested = {key for asked, _ in mark.args[1] for key in asked}
    assert tested | set(OF_RUN) == DataConfig.model_fields.keys()


def test_what_is_written_down_of_a_prepared_folder_is_what_it_was_made_with(prepared: str, tmp_path: Path) -> None:
    config = load_run_config("quickstart", {"data": {"source": prepared, "workers": 1}})
    recorded = config.model_dump()["data"]
    assert {key: recorded[key] for key in MADE_WITH} == MADE_WITH
    assert recorded["docs_bytes"] is None
    again = tmp_path / "config.yaml"
    again.write_text(config.to_yaml())
    assert load_run_config(str(again), {}) == config
    assert load_run_config("quickstart", {"data": {"source": prepared, **MADE_WITH, "workers": 1}}) == config


def test_a_recipe_that_names_a_prepared_folder_is_held_to_it(prepared: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"source": prepared, "block_size": 32}}))
    with pytest.raises(UserError, match="is prepared, with block_size=16"):
        load_run_config(str(recipe), {})
    assert load_run_config(str(recipe), {"data": {"block_size": 16}}).data.block_size == 16


def test_a_tokenizer_of_the_same_tokens_can_be_named(prepared: str, tmp_path: Path) -> None:
    assert (
        load_run_config(None, {"data": {"source": prepared, "tokenizer": f"{prepared}/tokenizer"}}).data.block_size
        == 16
    )
    other = train_tokenizer("wordpiece", lambda: iter(sentences(50)), 150)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="is prepared, with tokenizer=wordpiece"):
        load_run_config(None, {"data": {"source": prepared, "tokenizer": str(tmp_path / "other")}})


def test_a_prepared_folder_stands_alone_and_needs_no_blocks(prepared: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no other source beside it"):
        load_run_config(None, {"data": {"source": [prepared, "docs"]}})
    with pytest.raises(UserError, match="leave blocks out"):
        load_run_config(None, {"data": {"source": prepared}, "blocks": str(tmp_path / "blocks")})


def test_blocks_of_other_settings_are_never_to_be_removed(prepared: str, text_file: Path) -> None:
    for config in (DataConfig(source=str(text_file), **{**MADE_WITH, "block_size": 32}), DataConfig(**MADE_WITH)):
        with pytest.raises(UserError, match="name another folder"):
            prepare(config.model_copy(update={"docs_bytes": 10_000}), prepared)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tokenizer": "FOLDER", "vocab_size": 100}, "vocab_size=100 cannot be had: FOLDER is loaded as it is"),
        ({"tokenizer": "FOLDER", "lowercase": True}, "lowercase=True cannot be had: FOLDER is loaded as it is"),
        ({"tokenizer": "FOLDER", "tokenizer_bytes": 9}, "tokenizer_bytes=9 cannot be had: FOLDER is loaded as it is"),
        ({"tokenizer": "bpe", "lowercase": True}, "lowercase=True cannot be had: bpe keeps the case"),
    ],
)
def test_settings_of_a_trained_tokenizer_are_refused_for_another(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_settings(DataConfig, values, "data")


def test_only_what_runs_is_written_down_of_a_tokenizer() -> None:
    loaded = load_run_config("quickstart", {"data": {"tokenizer": "FOLDER"}}).data  # the recipe says vocab_size: 8192
    assert (loaded.vocab_size, loaded.lowercase, loaded.tokenizer_bytes) == (None, None, None)
    bpe = load_run_config("quickstart", {"data": {"tokenizer": "bpe", "lowercase": False}}).data
    assert (bpe.vocab_size, bpe.lowercase) == (8192, None)
    assert DataConfig().model_dump() == DataConfig(**DataConfig().model_dump()).model_dump()
    assert load_run_config("quickstart", {"data": {"source": "corpus/"}}).data.docs_bytes is None
