"""A suite of one's own, as `own_suite:Length` names it."""

from pydantic import Field

from mlpt.downstream.intervals import of_models
from mlpt.downstream.suite import Line, Result, Suite, SuiteConfig


class LengthConfig(SuiteConfig):
    factor: float = Field(1.0, gt=0)


class Length(Suite):
    """Tokens of its data, times a factor."""

    Config = LengthConfig

    def read(self):
        self.text = self.data("a text")

    def measure(self, subject, progress):
        value = self.config.factor * len(subject.tokenizer.tokenize(self.text))
        progress(1, 1)
        return Result([Line.of("overall", "overall", "length", of_models([value]), 1)], ["measured"])


class NoSuite:
    pass
