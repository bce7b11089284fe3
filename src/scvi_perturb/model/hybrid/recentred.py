"""A generator whose populations have the means of stage one."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_perturb._errors import NotTrainedError
from scvi_perturb.data.request import Request
from scvi_perturb.model.base.draw import Drawn, Plan, expected_proportions
from scvi_perturb.model.base.recentre import (
    gene_factors,
    group_populations,
    population_shares,
    rescaled,
    rescaled_parameters,
)
from scvi_perturb.model.hybrid.mean import (
    GroupMeans,
    RequestGroups,
    ask_stack,
    control_profiles,
    logged,
)
from scvi_perturb.model.latent.model import LatentModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.model.base.draw import LibrarySize
    from scvi_perturb.model.base.reference import Reference
    from scvi_perturb.module.base import CountParameters
    from scvi_perturb.predictors.request import Predictor
    from scvi_perturb.predictors.stack.stacked_mean import StackedMean

#: Cells of each group by which its factors are found.
N_PILOT = 1000
#: RequestGroups whose pilots are in memory together.
N_TOGETHER = 32


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
        self,
        request: Request,
        cells: Reference,
        plan: Plan,
        *,
        sampler: SamplerConfig,
        seed: int | None,
        library_size: LibrarySize = "reference",
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, with the means of stage one."""
        groups = RequestGroups.make(plan, request, cells, self._screen)
        factors = self._factors(
            request, cells, groups, sampler=sampler, seed=seed, library_size=library_size
        )
        drawn = super()._draw(
            request, cells, plan, sampler=sampler, seed=seed, library_size=library_size
        )
        likelihood = self._representation().likelihood
        for chunk in drawn:
            own = factors[groups.of[chunk.cells]]
            yield rescaled(chunk, own, likelihood, partial=self._partial)

    def _factors(
        self,
        request: Request,
        cells: Reference,
        groups: RequestGroups,
        *,
        sampler: SamplerConfig,
        seed: int | None,
        library_size: LibrarySize,
    ) -> np.ndarray:
        """Return the factor of each gene in each group, `(n_groups, n_genes)`."""
        own_seed = None if seed is None else seed + 2
        pilot, of = groups.pilot(N_PILOT, own_seed)
        drawn = super()._draw(
            request, cells, pilot, sampler=sampler, seed=own_seed, library_size=library_size
        )
        factors = np.ones((len(groups), len(self._screen.genes)))
        populations = self._populations(drawn, of)
        while some := list(islice(populations, N_TOGETHER)):
            chosen = np.array([group for group, _, _ in some])
            shares = np.stack([population_shares(own, size) for _, own, size in some])
            means = self._means(groups, chosen, cells, shares, interval=None)
            for (group, own, size), target in zip(some, means.shares, strict=True):
                factors[group] = gene_factors(
                    own.astype(np.float64), size, target, partial=self._partial
                )
        return factors

    def _own_shares(
        self,
        request: Request,
        cells: Reference,
        plan: Plan,
        groups: RequestGroups,
        *,
        sampler: SamplerConfig,
        seed: int | None,
    ) -> np.ndarray:
        """Return the shares of the genes in each group by the generator, `(n_groups, n_genes)`."""
        order = np.argsort(groups.of, kind="stable")
        some = Plan(plan.row[order], plan.reference[order], plan.draw[order])
        drawn = super()._draw(request, cells, some, sampler=sampler, seed=seed)
        populations = self._populations(drawn, groups.of[order])
        return np.stack([population_shares(own, size) for _, own, size in populations])

    def _populations(
        self, drawn: Iterable[Drawn], group: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        return group_populations(drawn, group, self._representation().likelihood)

    def _means(
        self,
        groups: RequestGroups,
        chosen: np.ndarray,
        cells: Reference,
        shares: np.ndarray | None,
        *,
        interval: float | None,
    ) -> GroupMeans:
        """Return the means of some groups, given the generator's shares, `(n_chosen, n_genes)`."""
        control, generator = control_profiles(groups, cells, chosen), None
        if shares is not None and self.mean is None:
            if not self._partial:  # those of zero-inflated counts do not sum to one
                shares = shares / shares.sum(axis=1, keepdims=True)
            generator = logged(shares) - control
        answer = ask_stack(
            self._stack(),
            groups,
            chosen,
            given=cells if cells.is_given else None,
            generator=generator,
            interval=interval,
        )
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
        plan = Plan.make(request, cells, None, 0)
        groups = RequestGroups.make(plan, request, cells, self._screen)
        shares = np.tile(population_shares(own, sizes), (len(groups), 1))
        means = self._means(groups, np.arange(len(groups)), cells, shares, interval=None)
        weight = np.bincount(groups.of, weights=cells.library[plan.reference])
        target = weight @ means.shares / weight.sum()
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

    def _warn_outside(self, groups: RequestGroups, means: GroupMeans) -> None:
        """Warn of what is asked but lies outside what calibration covers."""
        stack, found = self._stack(), dict[str, str]()
        for i, question in enumerate(means.answer.question):
            if question == "seen":
                continue
            limit, novelty = stack.most_novel(question), means.answer.novelty[i]
            name = str(groups.requests[i].condition)
            if limit is None:
                found[name] = f"{question}: nothing like it could be left out of training"
            elif novelty > limit:
                found[name] = f"novelty {novelty:.2f}, left out at most {limit:.2f}"
        if found:
            told = [f"{name} ({why})" for name, why in found.items()]
            more = "" if len(told) <= 5 else f", and {len(told) - 5} more"
            warnings.warn(
                f"Outside what the calibration of intervals covers: {', '.join(told[:5])}{more}.",
                UserWarning,
                stacklevel=3,
            )
