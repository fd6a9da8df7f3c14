"""Where MetaLMO's published code differs from what was meant: both sides of each switch (docs/papers/metalmo.md)."""

import pytest
import torch
from running import run
from safetensors.torch import load_file
from teacher_runs import config_with

from mlpt.data.batch import Batch
from mlpt.data.task_tokenizer import task_token
from mlpt.data.vocabulary import Vocabulary
from mlpt.meta.judges import labelled_inputs
from mlpt.meta.snapshot import take_snapshot
from mlpt.objectives import make_objectives
from mlpt.run.build import build_learner, open_sources
from mlpt.storage.checkpoint import Checkpoints
from mlpt.tasks import TASKS, Example, TaskData

VOCABULARY = Vocabulary(size=40, pad=0, mask=1, sep=2, cls=3, unk=1, extra=(4, 5))


def judged(blocks, monkeypatch=None, examples=(), **rule):
    """What the judge of a run with these settings draws at its first update."""
    if examples:
        data = TaskData(TASKS[rule["tasks"][0]], {"train": list(examples)})
        monkeypatch.setattr("mlpt.meta.judges.load_task", lambda *_: data)
    config = config_with(meta={"rules": {"teacher": rule}})
    learner = build_learner(config, open_sources(config, blocks), torch.device("cpu"))
    context = learner._context(take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True))
    rule = learner._rules["teacher"]
    rule._judge_of(context.model.objectives["teacher_made"], context)
    return rule._judge.draw(context)


def targets(judgement):
    return {int(one) for side in judgement for batch in side for one in batch.inputs.targets.unique()}


def test_a_labelled_loss_counts_labels_and_as_published_all_that_is_no_padding(moons_blocks):
    # ML-1, with the published vector.
    tokens, labels = torch.tensor([[4, 1, 9, 10, 2, 0]]), torch.tensor([[0, 8, 0, 0, 0, 0]])
    assert labelled_inputs(tokens, labels, 0).targets.tolist() == [8]
    assert labelled_inputs(tokens, labels, 0, by_inputs=True).targets.tolist() == [0, 8, 0, 0, 0]
    assert 0 not in targets(judged(moons_blocks, tasks=["mlm"]))
    assert 0 in targets(judged(moons_blocks, tasks=["mlm"], count_padding=True))


@pytest.mark.parametrize(("formats", "token"), [({}, task_token(3)), ({"cb_entailment_of_copa": True}, task_token(4))])
def test_the_teacher_is_judged_by_cbs_own_token_and_as_published_by_copas(moons_blocks, monkeypatch, formats, token):
    # ML-5
    entailed = TASKS["cb"].labels.index("entailment")
    examples = [Example(number, "1 2", "3 4", label=entailed) for number in range(4)]
    source = {"data_dir": "superglue"}
    found = judged(moons_blocks, monkeypatch, examples, tasks=["cb"], source=source, formats=formats)
    assert targets(found) == {token}


def test_the_teacher_is_judged_by_one_letter_answers_and_as_published_never(moons_blocks, monkeypatch):
    # ML-10
    example = Example(1, "who", "it was 5 or 12", label=1, spans=((7, 8), (12, 14)))
    rule = {"tasks": ["record_span"], "source": {"data_dir": "superglue"}, "formats": {"cut_last_characters": True}}
    whole = targets(judged(moons_blocks, monkeypatch, [example] * 2, **rule | {"formats": {}}))
    cut = targets(judged(moons_blocks, monkeypatch, [example] * 2, **rule))
    assert cut < whole


def test_padding_that_a_teacher_writes_into_a_text_is_padding_to_the_student_and_a_target_like_any_other():
    # ML-9: by default neither is ever written.
    texts = Batch.of(torch.randint(6, 40, (60, 10), generator=torch.Generator().manual_seed(0)))
    for allowed in (False, True):
        network = {"hidden_size": 8, "heads": 2, "intermediate_size": 16, "layers": 1, "positions": 10}
        settings = {"teacher_made": {"network": network, "may_write_padding": allowed}}
        made = make_objectives(settings, VOCABULARY)["teacher_made"]
        inputs = made.corrupt(texts.for_arm("teacher_made"), torch.Generator().manual_seed(1))
        padding = inputs.input_ids == 0
        assert bool(padding.any()) is allowed
        assert inputs.positions.tolist() == (~padding).view(-1).nonzero().squeeze(1).tolist()
        assert (0 in inputs.targets.tolist()) is allowed


def test_a_run_ends_with_its_last_step_and_as_published_with_its_last_evaluation(moons_blocks, tmp_path):
    # ML-14: the shorter run with the schedule of the longer is what the longer one was at that evaluation.
    plain = {"objectives": {"teacher_made": None, "counted_mlm": {}}, "meta": {"rules": {"teacher": None}}}
    found = {}
    for steps in (5, 4):
        train = {"steps": steps, "evaluate_every": 2, "checkpoint_every": 2, "schedule": {"length": 5}}
        run(config_with(**plain, train=train), moons_blocks, tmp_path / str(steps))
        checkpoint = Checkpoints(tmp_path / str(steps) / "checkpoints", 3).latest(say=pytest.fail)
        found[steps] = checkpoint.tensors["model"]
        exported = load_file(tmp_path / str(steps) / "model" / "model.safetensors")
        name, weights = next(iter(exported.items()))
        assert torch.equal(weights, found[steps][f"backbone.{name}"])
    at_evaluation = Checkpoints(tmp_path / "5" / "checkpoints", 3).load(4).tensors["model"]
    assert all(torch.equal(one, found[4][name]) for name, one in at_evaluation.items())
    assert any(not torch.equal(one, found[5][name]) for name, one in at_evaluation.items())
