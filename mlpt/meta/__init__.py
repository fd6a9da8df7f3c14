"""Learning how to pretrain: policies, the rules that compute them, and hypergradients."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`lookahead` brings torch and `higher`, which who reads a policy need not wait for."""
    if name == "lookahead":
        from mlpt.meta.hypergradients import lookahead

        return lookahead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
