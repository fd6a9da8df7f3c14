"""F1 and exact match of answer texts after SQuAD's normalisation (Rajpurkar et al., 2016), which ReCoRD shares."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> float:
    """1 where the normalised texts are equal."""
    return float(normalised(gold) == normalised(predicted))


def token_f1(gold: str, predicted: str) -> float:
    """F1 over the normalised words, each as often as it occurs. An empty text agrees only with an empty one."""
    wanted, given = normalised(gold).split(), normalised(predicted).split()
    if not wanted or not given:
        return float(wanted == given)
    common = sum((Counter(wanted) & Counter(given)).values())
    return 2 * common / (len(wanted) + len(given))


def best_f1(golds: Sequence[str], predicted: str) -> float:
    """The best F1 over gold answers; no gold answers means that the empty text is right (SQuAD v2)."""
    return max(token_f1(gold, predicted) for gold in _usable(golds))


def best_exact_match(golds: Sequence[str], predicted: str) -> float:
    """The best exact match over gold answers; no gold answers means that the empty text is right."""
    return max(exact_match(gold, predicted) for gold in _usable(golds))


def _usable(golds: Sequence[str]) -> Sequence[str]:
    # As the official v2 scorer: gold texts that normalise to nothing don't count where others are left.
    return [gold for gold in golds if normalised(gold)] or [""]
