"""docs/examples/counted_mix.py: shares of domains for a target text, counted."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from mlpt.data.blocks import Blocks
from mlpt.data.config import DataConfig
from mlpt.data.prepare import prepare
from mlpt.settings import load_settings

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def counted_mix(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import counted_mix

    return counted_mix


def test_a_bigram_model_gives_all_next_tokens_together_one(counted_mix):
    counted = np.random.default_rng(0).integers(0, 12, (200, 2))
    for before in range(12):
        asked = np.stack([np.full(12, before), np.arange(12)], axis=1)
        assert counted_mix.probabilities(counted, asked, 12).sum() == pytest.approx(1)


def test_a_pair_that_was_seen_is_counted(counted_mix):
    counted = np.array([[1, 2], [1, 2], [1, 3], [2, 1]])
    alone = (1 + 2) / (4 + 5)  # token 2 is next twice; one more for each of the five tokens
    expected = (2 + counted_mix.PRIOR * alone) / (3 + counted_mix.PRIOR)
    assert counted_mix.probabilities(counted, np.array([[1, 2]]), 5) == pytest.approx([expected])


def test_no_other_shares_are_likelier(counted_mix):
    """At the maximum the mean ratio of a domain to the mixture is 1 where it has a share, and at most 1 elsewhere."""
    given = np.random.default_rng(0).dirichlet(np.ones(40), 4)
    given[3] = 0.2 * given[:3].mean(0)  # never worth a share
    shares = counted_mix.likeliest_shares(given, 20_000)
    ratios = (given / (shares @ given)).mean(1)
    assert shares.sum() == pytest.approx(1)
    assert ratios.max() == pytest.approx(1, abs=1e-3)
    assert ratios[shares > 1e-3] == pytest.approx(1, abs=1e-3)
    assert shares[3] < 1e-6


def test_the_domain_that_the_target_is_of_gets_most_and_the_line_is_a_setting(counted_mix, tmp_path, capsys):
    words = np.random.default_rng(0).choice(["tree", "river", "court", "appeal", "stone", "judge"], (3, 240, 12))
    for name, lines, between in (("wood", words[0], " "), ("law", words[1], " the "), ("like_law", words[2], " the ")):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(between.join(line) for line in lines))
    sources = {name: str(tmp_path / f"{name}.txt") for name in ("wood", "law")}
    prepare(load_settings(DataConfig, {"sources": sources, "vocab_size": 200, "block_size": 32}), f"{tmp_path}/blocks")
    target = {"source": f"{tmp_path}/like_law.txt", "tokenizer": f"{tmp_path}/blocks/tokenizer", "block_size": 32}
    prepare(load_settings(DataConfig, target), f"{tmp_path}/target")

    counted_mix.main(f"{tmp_path}/blocks", f"{tmp_path}/target")
    setting = capsys.readouterr().out.splitlines()[0].strip('"')
    mix = load_settings(DataConfig, {"sources": sources, "mix": yaml.safe_load(setting.removeprefix("data.mix="))}).mix
    assert mix.keys() == set(Blocks.open(f"{tmp_path}/blocks", "train").domains)
    assert mix["law"] > 0.95
