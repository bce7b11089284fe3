"""Carry given cells: to conditions, back to control, and along the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_perturb._errors import check_choice
from scvi_perturb.generative import SamplerConfig
from scvi_perturb.model._carried import Carried, carried_adata
from scvi_perturb.model._draw import batch_codes
from scvi_perturb.model._flow_base import FlowBase, FlowCells
from scvi_perturb.model._latents import encode_cells
from scvi_perturb.model._populations import means_of_own
from scvi_perturb.model._result import Plan, cell_obs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.generative import SamplerName
    from scvi_perturb.model._carried import Output
    from scvi_perturb.model._flow_base import GivenCells
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request

__all__ = ["TransportMixin"]


class TransportMixin(FlowBase):
    """Verbs of models that are invertible in the latent."""

    def transport(
        self,
        adata: AnnData | MuData | None,
        conditions: Sequence[str] | pd.DataFrame,
        *,
        output: Output = "counts",
        sampler: SamplerName | SamplerConfig = "heun",
        seed: int | None = 0,
    ) -> AnnData:
        """Carry each given control cell to each condition, along one trajectory.

        Unlike :meth:`sample`, a cell starts at its mean latent and all cells are used once.

        Parameters
        ----------
        adata
            Control cells with the genes of training; contexts and batches may be new. None takes
            the training controls.
        conditions
            As for :meth:`sample`; a row with a context takes the cells of that context.
        output
            `"counts"`, drawn at the cell's library size; or `"mean"`, expected counts.
        sampler
            Solver, or a :class:`~scvi_perturb.generative.SamplerConfig` with the number of
            evaluations and the guidance scale.
        seed
            Seed of the counts. Transport itself draws nothing.

        Returns
        -------
        AnnData
            One row a cell and condition, as from :meth:`sample`; `obsm["X_latent"]` has where
            it arrived. `uns["scvi_perturb"]["round_trip_error"]` is the root mean square, in
            standard deviations of the latent, by which the way back misses the start.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For an output or a sampler that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        config = SamplerConfig.of(sampler, self._samplers)
        request, cells = self._ask(conditions, adata)
        plan = Plan.make(request, cells, None, seed)
        self.module.eval()
        mean, _ = encode_cells(self._representation(), cells.read, len(cells), self._device())
        centre, at = means_of_own(cells, mean), torch.from_numpy(plan.reference)
        start = FlowCells(
            tuple(request.conditions), plan.row, centre[at], cells.context[plan.reference]
        )
        before = mean[at]
        after = self._carry(before, start.as_control(), start, config)
        back = self._carry(after, start, start.as_control(), config)
        result = carried_adata(
            Carried(after, cells.library[plan.reference], self._batches(request, cells, plan)),
            cell_obs(plan, request, cells, self._screen),
            output=output,
            seed=seed,
            **self._output(),
        )
        result.uns = self._carried_uns(config, seed, output, (back, before))
        return result

    def invert(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        output: Output = "counts",
        sampler: SamplerName | SamplerConfig = "heun",
        seed: int | None = 0,
    ) -> AnnData:
        """Carry each cell back to control: the state that leads to it under its condition.

        Parameters
        ----------
        adata
            Cells with the genes and columns of training; None for the data of training.
        indices
            Cells, in the order wanted; None for all.
        output, sampler, seed
            As for :meth:`transport`.

        Returns
        -------
        AnnData
            One row a cell, under the cell's name; `obs` has its condition as
            `inverted_condition`, with dose and time where there are any, its context and batch.
            Latents and round-trip error as for :meth:`transport`.

        Raises
        ------
        NotTrainedError
            Before training.
        UnknownPerturbationError
            For cells with a perturbation neither trained on nor with features.
        ValueError
            For an output or a sampler that is not known.
        """
        self._check_trained()
        check_choice("output", output, ("counts", "mean"))
        config = SamplerConfig.of(sampler, self._samplers)
        given = self._given_cells(adata, indices)
        own, before = given.cells, given.latent
        after = self._carry(before, own, own.as_control(), config)
        back = self._carry(after, own.as_control(), own, config)
        carried = Carried(after, self._library_of(adata, indices), given.batch)
        obs = self._inverted_obs(adata, given)
        result = carried_adata(carried, obs, output=output, seed=seed, **self._output())
        result.uns = self._carried_uns(config, seed, output, (back, before))
        return result

    def trajectory(
        self,
        conditions: Sequence[str] | pd.DataFrame,
        times: Sequence[float],
        *,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 200,
        output: Output = "mean",
        sampler: SamplerName | SamplerConfig = "heun",
        seed: int | None = 0,
    ) -> AnnData:
        """Return cells on their way from control to a condition.

        The time of the flow is no time of the experiment: it orders the states between two
        distributions, along straight lines in the latent.

        Parameters
        ----------
        conditions, reference, n_samples
            As for :meth:`sample`.
        times
            Rising, from 0 (control) to 1 (response).
        output, sampler, seed
            As for :meth:`transport`.

        Returns
        -------
        AnnData
            One row a cell and time, times in turn; `obs["flow_time"]`; latents in
            `obsm["X_latent"]`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For times that do not rise from 0 to 1 or lie outside; for flows from noise, whose
            intermediate states are not cells.
        """
        check_choice("output", output, ("counts", "mean"))
        config = SamplerConfig.of(sampler, self._samplers)
        moments = self._moments(times)
        request, cells = self._ask(conditions, reference)
        plan = Plan.make(request, cells, n_samples, seed)
        self.module.eval()
        used, place = np.unique(plan.reference, return_inverse=True)
        mean, _ = encode_cells(
            self._representation(), lambda i: cells.read(used[i]), len(used), self._device()
        )
        start = mean[torch.from_numpy(place)]
        asked = FlowCells(tuple(request.conditions), plan.row, start, cells.context[plan.reference])
        path = self._follow(start, asked, (0.0, *moments), config)
        obs = cell_obs(plan, request, cells, self._screen)
        every = pd.concat([obs.assign(flow_time=t) for t in moments])
        every.index = pd.Index([f"{n}_time{i}" for i in range(len(moments)) for n in obs.index])
        n = len(moments)
        carried = Carried(
            torch.cat(path),
            np.tile(cells.library[plan.reference], n),
            np.tile(self._batches(request, cells, plan), n),
        )
        result = carried_adata(carried, every, output=output, seed=seed, **self._output())
        result.uns = self._carried_uns(config, seed, output, None)
        return result

    def _batches(self, request: Request, cells: Reference, plan: Plan) -> np.ndarray:
        """Return the batch of each cell of a plan: the one asked for, or its own."""
        own, asked = cells.batch[plan.reference], None
        if request.batch is not None:
            asked = batch_codes(request, self._screen, self._seen_batch())
        return own if asked is None else np.where(asked[plan.row] < 0, own, asked[plan.row])

    def _inverted_obs(self, adata: AnnData | MuData | None, given: GivenCells) -> pd.DataFrame:
        """Return the conditions that cells had, and their contexts and batches."""
        screen, own = self._screen, given.cells
        text = screen.table.frame(own.conditions).iloc[own.which].set_index(given.names)
        obs = pd.DataFrame({"inverted_condition": pd.Categorical(text["perturbation"])})
        obs.index = given.names
        for column, name in ((screen.keys.dose, "dose"), (screen.keys.time, "time")):
            if column is not None:
                obs[f"inverted_{name}"] = text[name]
        data = self._plain_adata() if adata is None else adata
        kept = [c for c in (*screen.context_columns, screen.batch_column) if c in data.obs]
        return obs.join(data.obs.iloc[given.rows][kept].set_axis(given.names, axis=0))
