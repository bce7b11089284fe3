"""Stage one of the hybrid: the mean of each group of cells, from predictors and the generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb.data import read_rows
from scvi_perturb.predictors._closure import proportions
from scvi_perturb.predictors._reference import Reference as MeanReference

if TYPE_CHECKING:
    from scvi_perturb.model._groups import Groups
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.predictors import StackedMean
    from scvi_perturb.predictors._stack_answer import StackAnswer

    Floats = np.ndarray

__all__ = ["GENERATOR", "GroupMeans", "RowMeans", "ask_stack", "control_profiles", "logged"]

#: Name of the generator among the members of the stack.
GENERATOR = "generator"


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """What stage one says of groups of cells.

    Attributes
    ----------
    control
        Profile of the control cells that each group starts from, `log1p` of counts per ten
        thousand of their sum, `(n_groups, n_genes)`.
    answer
        Change from it, and what is known of its error.
    partial
        Whether the genes are some of the library's only.
    """

    control: Floats
    answer: StackAnswer
    partial: bool

    @property
    def shares(self) -> Floats:
        """Expected share of each gene in the summed counts of each group."""
        profiles = self.control + self.answer.mean
        if self.partial:
            return np.maximum(np.expm1(profiles), 0.0) / TARGET_SUM
        return proportions(profiles)

    def by_row(self, row: np.ndarray, weight: np.ndarray) -> RowMeans:
        """Return the means of the rows of a request, of which each is a mixture of groups.

        Errors are mixed as the logarithm of a sum takes them: by what each group adds to the gene.
        Intervals, which lie around what the refits say, are widened to hold the prediction.

        Parameters
        ----------
        row
            Of each group, `(n_groups,)`, rising.
        weight
            Summed library size of each group, `(n_groups,)`.
        """
        starts, answer, shares = np.flatnonzero(np.diff(row, prepend=-1)), self.answer, self.shares

        def mixed(values: Floats, part: Floats) -> Floats:
            total = np.add.reduceat(weight[:, None] * part, starts)
            made: Floats = np.add.reduceat(weight[:, None] * part * values, starts) / total
            return made

        every, part = np.ones_like(shares), 1 + TARGET_SUM * shares
        profile = logged(mixed(shares, every))
        effect = profile - logged(mixed(np.expm1(self.control) / TARGET_SUM, every))
        return RowMeans(
            profile,
            effect,
            std=mixed(answer.std, part),
            lower=effect + mixed(np.minimum(answer.lower - answer.mean, 0), part),
            upper=effect + mixed(np.maximum(answer.upper - answer.mean, 0), part),
            question=[
                ", ".join(sorted(set(own)))
                for own in np.split(np.array(answer.question), starts[1:])
            ],
        )


@dataclass(frozen=True, slots=True)
class RowMeans:
    """Means of the rows of a request, `(n_rows, n_genes)` each; `question` a label a row."""

    profile: Floats
    effect: Floats
    std: Floats
    lower: Floats
    upper: Floats
    question: list[str]


def logged(shares: Floats) -> Floats:
    """Return `log1p` of counts per ten thousand."""
    made: Floats = np.log1p(TARGET_SUM * shares)
    return made


def control_profiles(groups: Groups, cells: Reference, chosen: np.ndarray) -> Floats:
    """Return the profile of the control cells of chosen groups.

    Not of those alone that were drawn: their sampling noise would be that of the prediction.
    """
    made: dict[int, Floats] = {}
    for rows in (groups.control[i] for i in chosen):
        if id(rows) not in made:
            made[id(rows)] = logged(cells.profile(rows))
    return np.stack([made[id(groups.control[i])] for i in chosen])


def ask_stack(
    stack: StackedMean,
    groups: Groups,
    chosen: np.ndarray,
    *,
    given: Reference | None,
    generator: Floats | None,
    interval: float | None,
) -> StackAnswer:
    """Ask predictors about groups.

    Parameters
    ----------
    stack
        Stage one.
    groups, chosen
        Groups, and which of them.
    given
        Reference cells of the user's; None where they are the training controls.
    generator
        Change of each chosen group's mean by the generator alone, `(n_chosen, n_genes)`; None
        where it has no part in the mean.
    interval
        Coverage; None leaves intervals out.
    """
    reference = None
    if given is not None:
        columns = given.labels.reindex(columns=list(stack.profiles.context_keys))
        rows = columns.astype(object).where(columns.notna(), None).to_numpy(dtype=object)
        reference = MeanReference(
            read_rows(given.counts, np.arange(len(given))),
            [tuple(row) for row in rows],
            given.labels.index,
            None if stack.profiles.libraries is None else given.library.astype(np.float64),
        )
    requests = [groups.requests[i] for i in chosen]
    outside = None if generator is None else {GENERATOR: generator}
    return stack.answer(requests, reference, interval=interval, outside=outside)
