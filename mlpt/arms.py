"""Which arms a run has: its objectives on all of its text, or on each domain where the mix of domains is learned; and
its labelled tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpt.data.batch import Arm
from mlpt.data.sources import ALL, TEXTS
from mlpt.errors import UserError

LEARNED = "learned"  # a mix of domains that the meta-learner makes


@dataclass(frozen=True)
class Arms:
    """every    all arms by name, in order; those of `trained` the mixture may draw, the others are only measured."""

    every: Mapping[str, Arm]
    trained: list[str]

    def weights(self, target: Mapping[str, float], setting: str) -> dict[str, float]:
        """Weights, summing to 1, of the arms that `target` names; of all that train, equally, where it names none.

        A name is an arm's, or an objective's or a source's, which stand for their arms in equal parts.
        Raises `UserError` for a name that is none of these.
        """
        weights: dict[str, float] = {}
        for name, weight in (target or dict.fromkeys(self.trained, 1.0)).items():
            found = self.named(name)
            if not found:
                known = ", ".join(dict.fromkeys([*self.every, *(arm.objective for arm in self.every.values())]))
                raise UserError(f"{setting} names '{name}', which this run neither trains nor measures: {known}")
            for arm in found:
                weights[arm] = weights.get(arm, 0.0) + weight / len(found)
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def named(self, name: str) -> list[str]:
        """The arms that a name stands for: itself, or those of an objective or of a source."""
        if name in self.every:
            return [name]
        same = [arm.name for arm in self.every.values() if name in (arm.objective, arm.source)]
        return [arm for arm in same if arm in self.trained] or same

    def sampling(self, wanted: str | Mapping[str, float]) -> dict[str, float] | None:
        """By what the arms that train are drawn (`train.sampling`), summing to 1; None: by the mixture.

        Raises `UserError` for a name that is no arm's, and where one would never be drawn.
        """
        if wanted == "mixture":
            return None
        shares = self.weights({} if isinstance(wanted, str) else wanted, "train.sampling")
        for name in shares:
            if name not in self.trained:
                raise UserError(
                    f"train.sampling names '{name}', which is only measured: {', '.join(self.trained)} train"
                )
        if missing := [name for name in self.trained if name not in shares]:
            raise UserError(
                f"train.sampling leaves out {', '.join(missing)}, which would never be drawn: give every arm a share"
            )
        return {name: shares[name] for name in self.trained}

    def selecting(self) -> dict[str, float]:
        """What says which step is best where the run has no target: `mlm` if it trains, else all that train."""
        mlm = {name: 1.0 for name in self.trained if self.every[name].objective == "mlm"}
        return self.weights(mlm, "mlm")


def arms_of(
    objectives: Sequence[str],
    domains: Sequence[str],
    mix: Any,
    texts: bool,
    tasks: Sequence[str] = (),
    measured: Sequence[str] = (),
) -> Arms:
    """The arms of `objectives`, over `domains` where `mix` says so, and those of labelled tasks.

    mix       what `data.mix` says; None: all text is one source.
    texts     measure on the target's own texts too.
    tasks     labelled tasks that train; each has an objective and a source of its name.
    measured  labelled tasks that the target alone looks at.
    """
    every = {name: Arm(name, name, ALL) for name in objectives}
    trained = list(objectives)
    if mix is not None and (mix != "characters" or len(domains) > 1):
        of_domains = {
            f"{name}@{domain}": Arm(f"{name}@{domain}", name, domain) for domain in domains for name in objectives
        }
        if mix == LEARNED:
            if len(domains) < 2:
                raise UserError(
                    f"data.mix=learned has {len(domains)} domain to mix: name several by data.sources, or leave mix out"
                )
            every, trained = of_domains, list(of_domains)
        else:
            every |= of_domains
    if texts:
        on_texts = ["mlm"] if "mlm" in objectives else list(objectives)
        every |= {f"{name}@{TEXTS}": Arm(f"{name}@{TEXTS}", name, TEXTS) for name in on_texts}
    every |= {name: Arm(name, name, name) for name in [*tasks, *measured]}
    trained += tasks
    return Arms(every, trained)
