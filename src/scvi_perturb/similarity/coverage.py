"""What training holds, and what is new of a request beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scvi_perturb.data.condition import Component, Condition
    from scvi_perturb.data.request import Context, RequestRow

#: "seen": measured in that context; "unseen_context": elsewhere, and nothing was measured there;
#: "context_transfer": elsewhere, and other perturbations there; "unseen_combination": only its
#: components; "dose": the same names at doses or times on both sides; "dose_beyond": on one side
#: only; "unseen_perturbation": a name that is new.
RequestScenario = Literal[
    "seen",
    "unseen_context",
    "context_transfer",
    "unseen_combination",
    "dose",
    "dose_beyond",
    "unseen_perturbation",
]


def agrees(asked: Context, own: Context) -> bool:
    """Whether a context is what was asked for, where something was said."""
    return all(a is None or a == b for a, b in zip(asked, own, strict=True))


@dataclass(frozen=True, slots=True)
class TrainingCoverage:
    """What training holds, as far as scenarios depend on it.

    `rows`, `contexts`, `conditions`: Treated rows (condition in context), their contexts, their
    conditions. `components`: All components, at their doses. `doses`: Lowest and highest dose of
    each name and kind.
    """

    rows: frozenset[RequestRow]
    contexts: frozenset[Context]
    conditions: frozenset[Condition]
    components: frozenset[Component]
    doses: dict[tuple[str, str], tuple[float, float]]

    @classmethod
    def of(cls, rows: Iterable[RequestRow]) -> Self:
        """Gather what treated training rows hold."""
        rows = frozenset(rows)
        components = frozenset(part for row in rows for part in row.condition.components)
        doses: dict[tuple[str, str], tuple[float, float]] = {}
        for part in components:
            low, high = doses.get((part.name, part.kind), (part.dose, part.dose))
            doses[part.name, part.kind] = min(low, part.dose), max(high, part.dose)
        return cls(
            rows,
            frozenset(row.context for row in rows),
            frozenset(row.condition for row in rows),
            components,
            doses,
        )

    def scenario(self, request: RequestRow) -> RequestScenario:
        """Return what a request that is no control asks.

        What its context leaves open is taken for what was seen.
        """
        parts = request.condition.components
        if any((part.name, part.kind) not in self.doses for part in parts):
            return "unseen_perturbation"
        if request.condition in self.conditions:
            here = self._agreeing(request.context)
            if any(replace(request, context=own) in self.rows for own in here):
                return "seen"
            return "context_transfer" if here else "unseen_context"
        if len(parts) > 1 and all(part in self.components for part in parts):
            return "unseen_combination"
        ranges = [(part.dose, *self.doses[part.name, part.kind]) for part in parts]
        inside = all(low <= dose <= high for dose, low, high in ranges)
        return "dose" if inside else "dose_beyond"

    def _agreeing(self, context: Context) -> list[Context]:
        if None not in context:
            return [context] if context in self.contexts else []
        return [own for own in self.contexts if agrees(context, own)]

    def regime(self, request: RequestRow) -> str:
        """Return which parts of a request are new, such as "seen perturbation, new context".

        A perturbation is "seen", "featured" (known by its features alone), or a "new combination"
        of seen ones. A context is seen where something but control was measured in it. Doses and
        times beyond those of training are told; those within are not.
        """
        parts = request.condition.components
        if not parts:
            return "control"
        ranges = [self.doses.get((part.name, part.kind)) for part in parts]
        what = "seen perturbation"
        if None in ranges:
            what = "featured perturbation"
        elif len(parts) > 1 and not self._combined(request):
            what = "new combination"
        where = "seen" if self._agreeing(request.context) else "new"
        doses = [(part.dose, own) for part, own in zip(parts, ranges, strict=True) if own]
        beyond = [] if all(low <= dose <= high for dose, (low, high) in doses) else ["dose outside"]
        times = [own.time for own in self.conditions if own.time is not None]
        time = request.condition.time
        if time is not None and times and not min(times) <= time <= max(times):
            beyond.append("time outside")
        return ", ".join([what, f"{where} context", *beyond])

    def _combined(self, request: RequestRow) -> bool:
        names = {part.name for part in request.condition.components}
        return any(names == {part.name for part in own.components} for own in self.conditions)
