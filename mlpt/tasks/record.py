"""ReCoRD (Zhang et al., 2018) as MetaLMO reads it: a query with a hole, and a passage from which the answer is copied.

Every entity of the passage stands between stars, so that a reader sees what may be copied.
"""

from collections.abc import Iterable

from mlpt.tasks.markers import insert_stars, through_stars
from mlpt.tasks.reading import RowError, list_of, mapping_of, number_of, text_of
from mlpt.tasks.task import Example

Span = tuple[int, int]  # characters of the passage: start, exclusive end


def record_spans(record: dict) -> Iterable[Example]:
    """One row a query, from a line of the original file (entity ends are inclusive) or a row of the hub (exclusive)."""
    if isinstance(record.get("idx"), dict):
        ids, text = mapping_of(record, "idx"), text_of(record, "passage")
        spans = mapping_of(record, "entity_spans")
        entities = [_span(text, *one) for one in zip(spans["start"], spans["end"], strict=True)]
        wanted = set(record.get("answers") or [])
        answers = [one for one in entities if text[slice(*one)] in wanted]
        index = number_of(ids, "query")
        yield _example(index, number_of(ids, "passage"), text_of(record, "query"), text, entities, answers)
        return
    passage = mapping_of(record, "passage")
    text, group = text_of(passage, "text"), number_of(record, "idx")
    entities = [_file_span(text, one) for one in list_of(passage, "entities")]
    for query in list_of(record, "qas"):
        answers = [_file_span(text, one) for one in query.get("answers") or []]
        yield _example(number_of(query, "idx"), group, text_of(query, "query"), text, entities, answers)


def _example(index: int, passage: int, query: str, text: str, entities: list[Span], answers: list[Span]) -> Example:
    edges = [edge for span in entities for edge in span]
    starred = insert_stars(text, edges)
    spans = tuple(through_stars(span, edges) for span in answers)
    golds = tuple(dict.fromkeys(text[slice(*span)] for span in answers))
    # With a star inside (an entity within another) it is no stretch of the starred text.
    start = next((span[0] for span in spans if starred[slice(*span)] == golds[0]), -1)
    return Example(
        index,
        query,
        starred,
        label=1 if answers else None,
        group=(passage, index),
        answers=golds,
        answer_start=start,
        spans=spans,
    )


def _file_span(text: str, span: dict) -> Span:
    found = _span(text, number_of(span, "start"), number_of(span, "end") + 1)
    if span.get("text", text[slice(*found)]) != text[slice(*found)]:
        raise RowError(f"has the answer {span['text']!r} where the passage has {text[slice(*found)]!r}")
    return found


def _span(text: str, start: int, end: int) -> Span:
    if not 0 <= start < end <= len(text):
        raise RowError(f"has an entity at characters {start} to {end} of a passage of {len(text)}")
    return start, end
