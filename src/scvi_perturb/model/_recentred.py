"""A generator whose populations have the means of stage one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_perturb._errors import NotTrainedError
from scvi_perturb.model._diffusion import PerturbDiffusion
from scvi_perturb.model._draw import Drawn, expected_proportions
from scvi_perturb.model._groups import Groups
from scvi_perturb.model._hybrid_draw import group_populations, moved, moved_parameters
from scvi_perturb.model._recentre import gene_factors, population_shares
from scvi_perturb.model._request import Request
from scvi_perturb.model._result import Plan
from scvi_perturb.model._stage_one import GroupMeans, ask_stack, control_profiles, logged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scvi_perturb.data import Condition
    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.model._draw import LibrarySize
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.module import CountParameters
    from scvi_perturb.predictors import StackedMean

__all__ = ["RecentredDiffusion"]

#: Cells of each group by which its factors are found.
N_PILOT = 1000
#: Groups whose pilots are in memory together.
N_TOGETHER = 32


class RecentredDiffusion(PerturbDiffusion):
    """Draws of :class:`PerturbDiffusion`, group by group moved onto a mean."""

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
        return self._screen.library_key is not None

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
        groups = Groups.make(plan, request, cells, self._screen)
        factors = self._factors(
            request, cells, groups, sampler=sampler, seed=seed, library_size=library_size
        )
        drawn = super()._draw(
            request, cells, plan, sampler=sampler, seed=seed, library_size=library_size
        )
        likelihood = self._representation().likelihood
        for chunk in drawn:
            own = factors[groups.of[chunk.cells]]
            yield moved(chunk, own, likelihood, partial=self._partial)

    def _factors(
        self,
        request: Request,
        cells: Reference,
        groups: Groups,
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
        waiting: list[tuple[int, np.ndarray, np.ndarray]] = []
        for group, expected, library in self._populations(drawn, of):
            waiting.append((group, expected, library))
            if len(waiting) == N_TOGETHER or group == len(groups) - 1:
                chosen = np.array([g for g, _, _ in waiting])
                shares = np.stack([population_shares(e, size) for _, e, size in waiting])
                means = self._means(groups, chosen, cells, shares, interval=None)
                for (g, own, size), target in zip(waiting, means.shares, strict=True):
                    factors[g] = gene_factors(
                        own.astype(np.float64), size, target, partial=self._partial
                    )
                waiting.clear()
        return factors

    def _populations(
        self, drawn: Iterable[Drawn], group: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        return group_populations(drawn, group, self._representation().likelihood)

    def _means(
        self,
        groups: Groups,
        chosen: np.ndarray,
        cells: Reference,
        shares: np.ndarray,
        *,
        interval: float | None,
    ) -> GroupMeans:
        """Return the means of some groups, given the generator's own, `(n_chosen, n_genes)`."""
        control = control_profiles(groups, cells, chosen)
        answer = ask_stack(
            self._stack(),
            groups,
            chosen,
            given=cells if cells.is_given else None,
            generator=logged(shares) - control,
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
        own = own.astype(np.float64)
        labels = self._screen.contexts[code[1]] if code[1] < len(self._screen.contexts) else ()
        context: dict[str, tuple[str, ...]] = {
            column: (label,)
            for column, label in zip(self._screen.context_columns, labels, strict=False)
        }
        request = Request((condition,), context, None)
        cells = self._training_controls()
        plan = Plan.make(request, cells, None, 0)
        groups = Groups.make(plan, request, cells, self._screen)
        shares = population_shares(own, np.ones(n))
        means = self._means(groups, np.array([0]), cells, shares[None], interval=None)
        factor = gene_factors(own, np.ones(n), means.shares[0], partial=self._partial)
        moving = torch.from_numpy(factor.astype(np.float32)).to(latents.device)
        return moved_parameters(unit, moving, likelihood, partial=self._partial)

    def _warn_outside(self, groups: Groups, means: GroupMeans) -> None:
        """Warn of what is asked but lies outside what calibration covers."""
        stack, rows = self._stack(), []
        for i, question in enumerate(means.answer.question):
            if question == "seen":
                continue
            limit = stack.most_novel(question)
            name = str(groups.requests[i].condition)
            if limit is None:
                rows.append(f"{name} ({question}: nothing like it could be left out of training)")
            elif means.answer.novelty[i] > limit:
                novelty = means.answer.novelty[i]
                rows.append(f"{name} (novelty {novelty:.2f}, left out at most {limit:.2f})")
        if rows:
            more = "" if len(rows) <= 5 else f", and {len(rows) - 5} more"
            warnings.warn(
                f"Outside what the calibration of intervals covers: {', '.join(rows[:5])}{more}.",
                UserWarning,
                stacklevel=3,
            )
