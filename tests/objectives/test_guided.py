"""Guides: the rarest tokens of the corpus, all tokens, and the tokens that questioning found hard."""

import numpy as np
import pytest
import torch

from mlpt.data.batch import Batch
from mlpt.data.blocks import Blocks
from mlpt.data.counts import rare_tokens
from mlpt.data.score_parts import begin, finish, write_part
from mlpt.data.token_scores import Question
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives import make_objectives
from mlpt.objectives.guided import GuidedMaskedLM
from mlpt.objectives.mlm import MaskingConfig
from mlpt.randomness import torch_generator
from mlpt.storage.store import Store

VOCABULARY = Vocabulary(size=1000, pad=0, unk=1, cls=2, sep=3, mask=4)


def words(rows=100, length=100):
    tokens = torch.randint(5, 1000, (rows, length), generator=torch_generator(0, "words"))
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    return tokens


def guided(counts=None, **settings):
    return GuidedMaskedLM(GuidedMaskedLM.Config(**settings), VOCABULARY, token_counts=counts)


def test_the_rarest_tokens_are_those_that_make_up_the_share():
    counts = np.array([999, 50, 0, 30, 10, 5, 5])  # 0 is special; 100 ordinary tokens
    for share, marked in [(0.04, [2, 5, 6]), (0.1, [2, 5, 6]), (0.11, [2, 4, 5, 6]), (0.5, [2, 3, 4, 5, 6])]:
        assert np.flatnonzero(rare_tokens(counts, share, (0,))).tolist() == marked
    assert rare_tokens(counts, 1.0, (0,)).tolist() == [False, True, True, True, True, True, True]
    assert not rare_tokens(np.zeros(3, dtype=np.int64), 0.5, (0, 1, 2)).any()


def test_the_rare_guide_marks_a_token_alike_in_every_micro_batch():
    """Counted within a micro-batch, a token would be rare or not depending on its neighbours."""
    tokens = words(rows=64)
    counts = np.bincount(tokens.flatten().numpy(), minlength=1000)
    objective = guided(counts, rare_share=0.2)
    whole = objective.guide(tokens)
    assert torch.equal(whole, torch.cat([objective.guide(rows) for rows in tokens.split(1)]))
    ordinary, seen = tokens > 4, torch.from_numpy(counts)[tokens]
    last = seen[whole].max()
    assert torch.equal(whole, ordinary & (seen <= last))
    assert (seen[ordinary] < last).float().mean() < 0.2 <= (seen[ordinary] <= last).float().mean()


def test_half_of_the_guide_is_predicted_and_nothing_else():
    tokens = words()
    counts = np.zeros(1000, dtype=np.int64)
    counts[5:300], counts[300:] = 1, 100
    objective = guided(counts, rare_share=0.001)
    inputs = objective.corrupt(Batch.of(tokens), torch_generator(2, "guided"))
    assert inputs.targets.max() < 300
    assert abs(len(inputs.positions) / ((tokens >= 5) & (tokens < 300)).sum() - 0.5) < 0.05
    now = inputs.input_ids.view(-1)[inputs.positions]
    assert abs((now == VOCABULARY.mask).float().mean() - 0.8) < 0.04


def test_the_guide_all_marks_every_ordinary_token():
    tokens = words()
    assert torch.equal(guided(guide="all").guide(tokens), ~VOCABULARY.is_special(tokens))


def test_the_rare_guide_asks_the_blocks_for_their_counts(small_blocks):
    blocks = Blocks.open(small_blocks)
    objective = make_objectives({"guided": {}}, blocks.vocabulary)["guided"]
    batch = blocks.batch(np.arange(64))
    with pytest.raises(ValueError, match="prepare_data"):
        objective.corrupt(batch, torch_generator(0, "guided"))
    objective.prepare_data(blocks)
    everything = torch.cat([objective.guide(blocks.tokens(np.arange(len(blocks))))])
    assert everything.float().mean() == pytest.approx(0.3, abs=0.03)
    assert len(objective.corrupt(batch, torch_generator(0, "guided")).positions) > 0


# ---------------------------------------------------------------- hard tokens


@pytest.fixture(scope="module")
def scores(small_blocks, tmp_path_factory):
    """Scores that say where they are: position / 10 in even rows, 0 in odd ones."""
    blocks = Blocks.open(small_blocks)
    folder = str(tmp_path_factory.mktemp("scores") / "loss")
    question = Question.of(blocks, None, {"loss": 0.1, "entropy": 0.5}, {})
    store = Store(folder)
    begin(store, question)
    parts = []
    for number in range(question.parts):
        rows = question.rows_of(number)
        place = np.tile(np.arange(32, dtype=np.float16) / 10, (len(rows), 1))
        place[rows % 2 == 1] = 0
        parts.append(write_part(store, question, number, {"loss": place, "entropy": 3 - place}, place.size))
    finish(store, question, parts)
    return folder


def hard_objective(blocks, scores, **settings):
    objective = make_objectives(
        {"guided": {"guide": "hard", "hard": {"scores": scores, **settings}}}, blocks.vocabulary
    )
    objective["guided"].prepare_data(blocks)
    return objective["guided"]


def predicted(objective, blocks, rows):
    tokens = blocks.tokens(rows)
    inputs = objective.corrupt(blocks.batch(rows), torch_generator(0, "guided"))
    chosen = torch.zeros(tokens.numel(), dtype=torch.bool)
    chosen[inputs.positions] = True
    return chosen.view(tokens.shape), ~blocks.vocabulary.is_special(tokens)


def test_the_rows_of_a_batch_find_their_scores(small_blocks, scores):
    blocks = Blocks.open(small_blocks)
    objective = hard_objective(blocks, scores, threshold=2.0)
    chosen, ordinary = predicted(objective, blocks, np.array([8, 3, 120, 4]))
    above = torch.arange(32) > 20
    for place in (0, 2, 3):
        assert torch.equal(chosen[place], above & ordinary[place])
    shown = blocks.batch(np.array([8, 3]))
    assert torch.equal(objective.hard_tokens(shown), above & torch.tensor([[True], [False]]))
    assert objective.shown_split == "train"  # the split that the scores are of
    assert chosen[1].sum() in (3, 4, 5), "row 3 has no hard token: 15 % of its 30 at random"


def test_the_threshold_is_the_metrics_own_or_a_share_of_the_corpus(small_blocks, scores):
    blocks = Blocks.open(small_blocks)
    rows = np.array([2, 6])
    chosen, ordinary = predicted(hard_objective(blocks, scores), blocks, rows)
    assert torch.equal(chosen, (torch.arange(32) > 1) & ordinary), "loss: 0.1 nats, strictly above"
    # A quarter of all tokens: the upper half of the even rows, positions 16 to 31.
    chosen, ordinary = predicted(hard_objective(blocks, scores, share=0.255), blocks, rows)
    assert torch.equal(chosen, (torch.arange(32) > 15) & ordinary)
    chosen, ordinary = predicted(hard_objective(blocks, scores, metric="entropy", threshold=2.0), blocks, rows)
    assert torch.equal(chosen, (torch.arange(32) < 10) & ordinary)


def test_a_threshold_that_leaves_nothing_is_a_warning_with_the_share(small_blocks, scores, caplog):
    hard_objective(Blocks.open(small_blocks), scores, threshold=0.5)
    assert not caplog.records
    hard_objective(Blocks.open(small_blocks), scores, threshold=9)
    assert "only 0.0000% of the tokens score above 9 (loss), 0 in a hundred rows" in caplog.text


def test_texts_of_other_splits_are_masked_at_random(small_blocks, scores):
    blocks = Blocks.open(small_blocks)
    objective = hard_objective(blocks, scores)
    dev = Blocks.open(small_blocks, "dev")
    rows = np.arange(0, 40, 2)
    chosen, _ = predicted(objective, dev, rows)
    assert set(chosen.sum(1).tolist()) <= {3, 4, 5}


def test_the_hard_guide_asks_for_its_scores_first(small_blocks, scores):
    blocks = Blocks.open(small_blocks)
    settings = {"guide": "hard", "hard": {"scores": scores}}
    unprepared = make_objectives({"guided": settings}, blocks.vocabulary)["guided"]
    with pytest.raises(ValueError, match="prepare_data"):
        unprepared.corrupt(blocks.batch(np.arange(4)), torch_generator(0, "guided"))


def test_smoothing_goes_with_a_guide(small_blocks, scores):
    blocks = Blocks.open(small_blocks)
    settings = {"guide": "hard", "hard": {"scores": scores}, "smoothing": {"kind": "token", "weight": 0.2}}
    objective = make_objectives({"guided": settings}, blocks.vocabulary)["guided"]
    objective.prepare_data(blocks)
    rows = np.arange(4)
    for split, weight in (("train", 0.2), ("dev", None)):
        batch = Blocks.open(small_blocks, split).batch(rows)
        inputs = objective.corrupt(batch, torch_generator(0, "guided"))
        assert inputs.smoothing is None if weight is None else inputs.smoothing.item() == pytest.approx(weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "margin"}, "has no metric 'margin'; it has loss, entropy"),
        ({"scores": "nowhere"}, "holds no token scores; make them with mlpt question"),
    ],
)
def test_scores_that_cannot_serve_are_one_line(small_blocks, scores, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        hard_objective(Blocks.open(small_blocks), **{"scores": scores, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "hard"}, "belong together"),
        ({"hard": {"scores": "there"}}, "belong together"),
        ({"guide": "hard", "hard": {"scores": "there", "threshold": 1, "share": 0.1}}, "give one"),
        ({"guide": "hard", "hard": {"scores": "there"}, "probability": 0.3}, r"it is hard\.probability"),
        ({"guide": "hard", "hard": {"scores": "there"}, "mask_share": 0.6}, r"it is hard\.mask_share"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        make_objectives({"guided": settings}, VOCABULARY)
    assert "\n" not in str(caught.value)


def test_resolved_settings_can_be_read_again():
    config = GuidedMaskedLM.Config(guide="hard", hard={"scores": "there", "spans": (1, 3)})
    assert GuidedMaskedLM.Config.model_validate(config.model_dump(mode="json")) == config
    assert set(MaskingConfig.model_fields) <= set(GuidedMaskedLM.Config.model_fields)
