"""Means of groups of cells from the stack, and draws of the generator moved onto them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
import torch

from scvi_perturb._checks import checked
from scvi_perturb._core import (
    TARGET_SUM,
    NotTrainedError,
    warn,
)
from scvi_perturb.data.reader import read_rows
from scvi_perturb.data.request import Request, RequestRow
from scvi_perturb.model.base.draw import (
    Drawn,
    expected_proportions,
    gene_factors,
    group_populations,
    population_shares,
    rescaled,
    rescaled_parameters,
)
from scvi_perturb.model.base.reference import Plan
from scvi_perturb.model.latent.model import LatentModel
from scvi_perturb.predictors.profiles import proportions
from scvi_perturb.predictors.request import ControlCells

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.request import Context
    from scvi_perturb.data.screen import Screen
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.model.base.draw import LibrarySize
    from scvi_perturb.model.base.reference import Reference
    from scvi_perturb.module.base import CountParameters
    from scvi_perturb.predictors.profiles import TrainingProfiles
    from scvi_perturb.predictors.request import Predictor
    from scvi_perturb.predictors.stack.scenarios import AnsweredScenario
    from scvi_perturb.predictors.stack.stacked_mean import StackedMean, StackPrediction

    Floats = np.ndarray


@dataclass(frozen=True, slots=True)
class RequestGroups:
    """Groups of the entries of a plan, one for each row and context.

    `plan`: The cells to draw. `of`: Group of each entry, `(n_cells,)`. `row`: Row of the request of
    each group, `(n_groups,)`, rising. `requests`: Condition and context of each group, as
    predictors of means are asked.
    `pool`: Reference cells of the context of each group, which it starts from. `control`: Those of
    them whose mean it changes: the ones in the batch asked for, where there are any.
    """

    plan: Plan
    of: np.ndarray
    row: np.ndarray
    requests: list[RequestRow]
    pool: list[np.ndarray]
    control: list[np.ndarray]
    _profiles: dict[int, Floats] = field(default_factory=dict)

    @classmethod
    def make(cls, plan: Plan, screen: Screen) -> Self:
        """Group entries by row and by the context of the cell that they start from.

        A context that a row asks for by name comes before that of its reference cells.
        """
        request, cells = plan.request, plan.cells
        labels = cells.labels.reindex(columns=list(screen.keys.context)).to_numpy(object, copy=True)
        labels[pd.isna(labels)] = None
        own, code = _distinct(labels)
        pairs, of = np.unique(
            np.stack([plan.row, code[plan.reference]], axis=1), axis=0, return_inverse=True
        )
        requests = [
            RequestRow(request.conditions[row], _context(own[i], request.where(row), screen))
            for row, i in pairs
        ]
        pools = [np.flatnonzero(code == i) for i in range(len(own))]
        batch = [""] * len(request) if request.batch is None else request.batch
        keys = [(int(i), batch[row]) for row, i in pairs]
        controls = {
            (i, label): _of_batch(pools[i], label, cells, screen)
            for i, label in dict.fromkeys(keys)
        }
        return cls(
            plan,
            of.ravel(),
            pairs[:, 0],
            requests,
            [pools[i] for i, _ in keys],
            [controls[key] for key in keys],
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.row)

    def pilot(self, n_cells: int, seed: int | None) -> tuple[Plan, np.ndarray]:
        """Return a plan of `n_cells` of each group, and the group of its entries.

        They start from the pool, whatever was drawn of it: what a group's mean is may not depend on
        how many cells are asked for.
        """
        random = np.random.default_rng(seed)
        cells = [np.resize(random.permutation(pool), n_cells) for pool in self.pool]
        of = np.repeat(np.arange(len(self)), n_cells)
        pilot = replace(
            self.plan,
            row=self.row[of],
            reference=np.concatenate(cells),
            draw=np.tile(np.arange(n_cells), len(self)),
        )
        return pilot, of

    @property
    def library(self) -> Floats:
        """Summed library size of the cells of each group, `(n_groups,)`."""
        return np.bincount(self.of, weights=self.plan.library)

    def control_profiles(self, chosen: np.ndarray) -> Floats:
        """Return the profile of the control cells of chosen groups.

        Not of those alone that were drawn: their sampling noise would be that of the prediction.
        """
        for rows in (self.control[i] for i in chosen):
            if id(rows) not in self._profiles:
                self._profiles[id(rows)] = logged(self.plan.cells.profile(rows))
        return np.stack([self._profiles[id(self.control[i])] for i in chosen])

    def blocks(self, n_rows: int) -> Iterator[np.ndarray]:
        """Yield the groups of so many rows of the request at a time."""
        for start in range(0, int(self.row[-1]) + 1, n_rows):
            yield np.arange(*np.searchsorted(self.row, [start, start + n_rows]))

    def given(self, profiles: TrainingProfiles) -> ControlCells | None:
        """Return the reference cells as predictors of means take them; None if none were given."""
        given = self.plan.cells
        if not given.is_given:
            return None
        columns = given.labels.reindex(columns=list(profiles.keys.context))
        rows = columns.astype(object).where(columns.notna(), None).to_numpy(dtype=object)
        return ControlCells(
            read_rows(given.counts, np.arange(len(given))),
            [tuple(row) for row in rows],
            given.labels.index,
            None if profiles.libraries is None else given.library.astype(np.float64),
        )


def _distinct(labels: np.ndarray) -> tuple[list[Context], np.ndarray]:
    """Return the distinct rows of labels, and which of them each row is."""
    rows = [tuple(row) for row in labels]
    place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    return list(place), np.array([place[row] for row in rows], dtype=np.int64)


def _context(own: Context, asked: dict[str, str], screen: Screen) -> Context:
    return tuple(
        asked.get(column, label) for column, label in zip(screen.keys.context, own, strict=True)
    )


def _of_batch(pool: np.ndarray, label: str, cells: Reference, screen: Screen) -> np.ndarray:
    """Return the cells of a pool in a batch; all of them where none is, or none was asked for."""
    if not label or screen.keys.batch not in cells.labels:
        return pool
    own = pool[cells.labels[screen.keys.batch].to_numpy()[pool] == label]
    return own if len(own) else pool


#: Name of the generator among the members of the stack.
GENERATOR = "generator"


@dataclass(frozen=True, slots=True)
class GroupMeans:
    """What stage one says of groups of cells.

    `control`: Profile of the control cells that each group starts from, `log1p` of counts per ten
    thousand of their sum, `(n_groups, n_genes)`. `answer`: Change from it, and what is known of its
    error. `partial`: Whether the genes are some of the library's only.
    """

    control: Floats
    answer: StackPrediction
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
        Intervals, which lie around what the refits say, are widened to hold the prediction. The
        novelty is the mean over groups.

        `row`: Of each group, `(n_groups,)`, rising. `weight`: Summed library size of each group,
        `(n_groups,)`.
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
            novelty=np.add.reduceat(answer.novelty, starts)
            / np.add.reduceat(np.ones(len(row)), starts),
            scenario=[
                ", ".join(sorted(set(own)))
                for own in np.split(np.array(answer.scenario), starts[1:])
            ],
        )


@dataclass(frozen=True, slots=True)
class RowMeans:
    """Means of the rows of a request, `(n_rows, n_genes)` each.

    `novelty` is a number a row, NaN where the stack holds no regression; `scenario` a label a row.
    """

    profile: Floats
    effect: Floats
    std: Floats
    lower: Floats
    upper: Floats
    novelty: Floats
    scenario: list[str]


def logged(shares: Floats) -> Floats:
    """Return `log1p` of counts per ten thousand."""
    made: Floats = np.log1p(TARGET_SUM * shares)
    return made


#: Cells of each group by which its factors are found.
N_PILOT = 1000
#: Groups whose pilots are in memory together.
N_TOGETHER = 32
#: Rows of a request whose means are asked for together.
N_ROWS = 64


@checked
class RecentredModel(LatentModel):
    """Draws of a generator in the latent, group by group moved onto a mean."""

    #: Stage one of the user's, in which the generator has no part; None for the stack.
    mean: Predictor | None
    #: Stage one, after training.
    mean_: StackedMean | None

    def _stack(self) -> StackedMean:
        if self.mean_ is None:
            msg = f"This {type(self).__name__} has no stage one yet; call `.train()` first."
            raise NotTrainedError(msg)
        return self.mean_

    @property
    def _partial(self) -> bool:
        """Whether the genes of the file are some of the library's only."""
        return self._screen.keys.library is not None

    def _draw(
        self, plan: Plan, *, sampler: SamplerConfig, seed: int | None, library_size: LibrarySize
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, with the means of stage one."""
        groups = RequestGroups.make(plan, self._screen)
        factors = self._factors(groups, sampler=sampler, seed=seed, library_size=library_size)
        drawn = super()._draw(plan, sampler=sampler, seed=seed, library_size=library_size)
        likelihood = self._representation().likelihood
        held: dict[int, np.ndarray] = {}
        for chunk in drawn:
            of = groups.of[chunk.cells]
            first = np.searchsorted(groups.row, plan.row[chunk.cells[0]])
            held = {group: own for group, own in held.items() if group >= first}
            while int(of.max()) not in held:
                held |= [next(factors)]
            used, place = np.unique(of, return_inverse=True)
            own = np.stack([held[group] for group in used.tolist()])[place]
            yield rescaled(chunk, own, likelihood, partial=self._partial)

    def _factors(
        self,
        groups: RequestGroups,
        *,
        sampler: SamplerConfig,
        seed: int | None,
        library_size: LibrarySize,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each group in turn with the factor of each gene, `(n_genes,)`."""
        own_seed = None if seed is None else seed + 2
        pilot, of = groups.pilot(N_PILOT, own_seed)
        drawn = super()._draw(pilot, sampler=sampler, seed=own_seed, library_size=library_size)
        populations, given = self._populations(drawn, of), groups.given(self._stack().profiles)
        while some := list(islice(populations, N_TOGETHER)):
            chosen = np.array([group for group, _, _ in some])
            shares = np.stack([population_shares(own, size) for _, own, size in some])
            means = self._means(groups, chosen, shares, given=given, interval=None)
            for (group, own, size), target in zip(some, means.shares, strict=True):
                yield (
                    group,
                    gene_factors(own.astype(np.float64), size, target, partial=self._partial),
                )

    def _own_shares(
        self,
        groups: RequestGroups,
        *,
        sampler: SamplerConfig,
        seed: int | None,
    ) -> Iterator[np.ndarray]:
        """Yield the shares of the genes in each group by the generator, `(n_genes,)`."""
        order, plan = np.argsort(groups.of, kind="stable"), groups.plan
        some = replace(
            plan, row=plan.row[order], reference=plan.reference[order], draw=plan.draw[order]
        )
        drawn = super()._draw(some, sampler=sampler, seed=seed, library_size="reference")
        for _, own, size in self._populations(drawn, groups.of[order]):
            yield population_shares(own, size)

    def _populations(
        self, drawn: Iterable[Drawn], group: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        return group_populations(drawn, group, self._representation().likelihood)

    def _means(
        self,
        groups: RequestGroups,
        chosen: np.ndarray,
        shares: np.ndarray | None,
        *,
        given: ControlCells | None,
        interval: float | None,
    ) -> GroupMeans:
        """Return the means of some groups.

        `shares`: The generator's, `(n_chosen, n_genes)`; None where it has no part in the mean.
        `given`: Of `groups.given`. `interval`: Coverage; None leaves intervals out.
        """
        control, outside = groups.control_profiles(chosen), None
        if shares is not None and self.mean is None:
            if not self._partial:  # those of zero-inflated counts do not sum to one
                shares = shares / shares.sum(axis=1, keepdims=True)
            outside = {GENERATOR: logged(shares) - control}
        requests = [groups.requests[i] for i in chosen]
        answer = self._stack().predict_changes(requests, given, interval=interval, external=outside)
        return GroupMeans(control, answer, self._partial)

    def _unit_parameters(
        self, latents: torch.Tensor, condition: Condition, code: np.ndarray
    ) -> CountParameters:
        """Return parameters of counts whose mean over the latents is that of stage one."""
        unit = super()._unit_parameters(latents, condition, code)
        likelihood = self._representation().likelihood
        n = len(latents)
        library = torch.ones(n, device=latents.device)
        own = expected_proportions(Drawn(np.arange(n), library, unit), likelihood)
        own, sizes = own.astype(np.float64), np.ones(n)
        cells = self._training_controls()
        request = self._request_of(condition, code, cells)
        groups = RequestGroups.make(Plan.make(request, cells, None, 0), self._screen)
        shares = np.tile(population_shares(own, sizes), (len(groups), 1))
        given = groups.given(self._stack().profiles)
        means = self._means(groups, np.arange(len(groups)), shares, given=given, interval=None)
        target = population_shares(means.shares, groups.library)
        factor = gene_factors(own, sizes, target, partial=self._partial)
        moving = torch.from_numpy(factor.astype(np.float32)).to(latents.device)
        return rescaled_parameters(unit, moving, likelihood, partial=self._partial)

    def _request_of(self, condition: Condition, code: np.ndarray, cells: Reference) -> Request:
        """Return the request of a condition in the context and batch of a code.

        Where no control is of that context, it is left open, as it is for latents.
        """
        screen = self._screen
        context: dict[str, tuple[str, ...]] = {}
        if (cells.context == code[1]).any():
            labels = screen.contexts[code[1]]
            context = {c: (x,) for c, x in zip(screen.keys.context, labels, strict=True)}
        known = screen.keys.batch is not None and code[2] < len(screen.batches)
        return Request((condition,), context, (screen.batches[code[2]][0],) if known else None)

    def _warn_outside(
        self, groups: RequestGroups, scenario: Sequence[AnsweredScenario], novelty: np.ndarray
    ) -> None:
        """Warn of what is asked but lies outside what calibration covers, by group."""
        stack, found = self._stack(), dict[str, str]()
        limits = {own: stack.max_novelty(own) for own in {*scenario} - {"seen"}}
        for request, own, new in zip(groups.requests, scenario, novelty, strict=True):
            if own == "seen":
                continue
            limit = limits[own]
            if limit is None:
                why = f"{own}: nothing like it could be left out of training"
                found[str(request.condition)] = why
            elif new > limit:
                found[str(request.condition)] = f"novelty {new:.2f}, left out at most {limit:.2f}"
        if found:
            told = [f"{name} ({why})" for name, why in found.items()]
            more = "" if len(told) <= 5 else f", and {len(told) - 5} more"
            warn(f"Outside what the calibration of intervals covers: {', '.join(told[:5])}{more}.")
