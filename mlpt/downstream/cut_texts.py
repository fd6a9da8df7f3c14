"""What people should know of texts that are longer than a row: windows laid closer, answers and words out of reach."""

from collections.abc import Mapping

from mlpt.downstream.words import lost_words
from mlpt.tasks import TaskData
from mlpt.tasks.features import Features, SpanConfig, lost_answers


def notes_of_cuts(data: TaskData, features: Mapping[str, Features], length: int, span: SpanConfig) -> list[str]:
    """A line each for windows that had to be laid closer than asked, and for each split of `features` whose answers or
    words are not all in the rows of at most `length` tokens."""
    if data.task.kind == "span":
        return [*_closer(data, features, length, span), *_lost(data, features, length)]
    return _lost(data, features, length) if data.task.kind == "token_classification" else []


def _closer(data: TaskData, features: Mapping[str, Features], length: int, span: SpanConfig) -> list[str]:
    least = min(one.stride for one in features.values() if one.stride is not None)
    if least >= span.doc_stride:
        return []
    asked = f"doc_stride {span.doc_stride} lowered to {least}"
    return [f"task '{data.task.name}': {asked}, so that windows of {length} tokens overlap"]


def _lost(data: TaskData, features: Mapping[str, Features], length: int) -> list[str]:
    count, what, why = (
        (lost_answers, "answers", f"lie in no window of {length} tokens")
        if data.task.kind == "span"
        else (lost_words, "words", f"have no token: sentences are cut at {length} tokens")
    )
    notes = []
    for split, own in features.items():
        lost, of_all = count(own, data.splits[split])
        if lost:
            which = f"{lost:,} of {of_all:,} {what} of {split} ({lost / of_all:.1%})"
            notes.append(f"task '{data.task.name}': {which} {why}")
    return notes
