"""Verbs on given cells: what they would be, what lies between, the population they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb._random import generator
from scvi_perturb.model._causal_given import CausalGiven
from scvi_perturb.model._causal_sums import OperatorSums
from scvi_perturb.model._request import parse_request
from scvi_perturb.model._result import Plan, cell_obs
from scvi_perturb.module import ConditionTensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.model._carried import Output
    from scvi_perturb.model._causal_draw import Latents

__all__ = ["CausalVerbs"]


class CausalVerbs(CausalGiven, OperatorSums):
    """`counterfactual`, `interpolate`, `transfer`."""

    def counterfactual(
        self,
        adata: AnnData | MuData | None,
        conditions: Sequence[str] | pd.DataFrame | Mapping[str, Mapping[str, float]],
        *,
        indices: Sequence[int] | None = None,
        output: Output = "counts",
        seed: int | None = 0,
    ) -> AnnData:
        """Return each given cell as it would be under other conditions.

        Its identity, technical and basal latents stay; from the state the shift of its own
        condition is taken, as far as the cell is likely to have responded, and that of the other
        condition added. It is a statement of the model about a cell that responds, not an
        identified one about this cell.

        Parameters
        ----------
        adata
            Cells with the genes and columns of training, under any condition; None for the data of
            training.
        conditions
            Names or a table, as for :meth:`sample`, without context or batch. Or a mapping of a
            name of your own to weights of perturbations, `{"A without B": {"A": 1, "B": -1}}`.
        indices
            Cells, in the order wanted; None for all.
        output
            `"counts"`, drawn at the cell's library size; or `"mean"`, expected counts.
        seed
            Seed of the counts.

        Returns
        -------
        AnnData
            One row a cell and condition, conditions in turn; `obs`: the condition's columns, and
            `reference_cell`; latents in `obsm["X_latent"]`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For an output that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        given = self._given(adata, indices)
        asked, weight, frame = self._asked_operators(conditions)
        basal, n = self._basal(given), len(given)
        at = torch.arange(len(frame), device=self._device()).repeat_interleave(n)
        rows = asked.rows(at)
        factor = None if weight is None else weight[at]
        own = self._shifted(basal.repeat(len(frame), 1), rows, factor)
        obs = frame.loc[frame.index.repeat(n)].reset_index(drop=True)
        obs["reference_cell"] = np.tile(given.names.astype(str).to_numpy(), len(frame))
        obs.index = pd.Index([f"row{i}_cell{j}" for i in range(len(frame)) for j in range(n)])
        library = np.tile(given.library, len(frame))
        return self._decoded(own, library, rows, obs, output=output, seed=seed, weight=factor)

    def interpolate(
        self,
        start: str,
        end: str,
        *,
        n_steps: int = 5,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 200,
        output: Output = "mean",
        seed: int | None = 0,
    ) -> AnnData:
        """Return cells on the straight line between two conditions in the state.

        Parameters
        ----------
        start, end
            Names of conditions, the control among them.
        n_steps
            Points on the line, both ends included; at least 2.
        reference, n_samples
            As for :meth:`sample`.
        output, seed
            As for :meth:`counterfactual`.

        Returns
        -------
        AnnData
            One row a cell and point, points in turn; `obs["fraction"]`, 0 at the start and 1 at
            the end.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For fewer than two points, or an output that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        if n_steps < 2:
            msg = f"n_steps={n_steps}; expected at least 2, the start and the end."
            raise ValueError(msg)
        request, cells = self._ask([start, end], reference)
        one = request.__class__(request.conditions[:1], {}, None)
        plan = Plan.make(one, cells, n_samples, seed)
        used, place = np.unique(plan.reference, return_inverse=True)
        latents = self._latents_of(cells, used)
        mean = latents.mean[torch.from_numpy(place)]
        both = self._condition_tensors(request.conditions)
        ends = [
            self._shifted(mean, both.rows(torch.full((len(plan),), i, device=self._device())), None)
            for i in range(2)
        ]
        fractions = np.linspace(0.0, 1.0, n_steps)
        points = torch.cat([torch.lerp(ends[0], ends[1], float(f)) for f in fractions])
        obs = cell_obs(plan, one, cells, self._screen).drop(columns="draw")
        every = pd.concat([obs.assign(fraction=f, start=start, end=end) for f in fractions])
        every.index = pd.Index([f"{name}_{i}" for i in range(n_steps) for name in obs.index])
        every = every.drop(columns=self._screen.keys.perturbation)
        # Of the genes that both edit, as much is corrected as each has of the point.
        component, dose, mask = (x.reshape(1, -1) for x in both[:3])
        joined = ConditionTensors(component, dose, mask, both.time[:1])
        rows = joined.rows(torch.zeros(len(points), dtype=torch.long, device=self._device()))
        at = torch.from_numpy(fractions).to(points.dtype)
        weight = torch.stack([1 - at, at], dim=1).repeat_interleave(both.mask.shape[1], dim=1)
        weight = weight.repeat_interleave(len(plan), dim=0).to(self._device())
        library = np.tile(cells.library[plan.reference], n_steps)
        return self._decoded(points, library, rows, every, output=output, seed=seed, weight=weight)

    def transfer(
        self,
        reference: AnnData | MuData,
        conditions: Sequence[str] | pd.DataFrame,
        *,
        n_samples: int = 500,
        output: Output = "counts",
        seed: int | None = 0,
    ) -> AnnData:
        """Draw the population that a few reference cells, or a single one, stand for.

        Unlike :meth:`sample`, which keeps the identity of each reference cell, the mean identity
        of the reference is drawn towards that of the training contexts, as far as so few cells
        leave it open, and cells vary around it as cells of one context do.

        Parameters
        ----------
        reference
            Control cells of one cell type, donor or sample, one or many; never trained on.
        conditions
            Names or a table, as for :meth:`sample`.
        n_samples
            Cells drawn for each condition.
        output, seed
            As for :meth:`counterfactual`.

        Returns
        -------
        AnnData
            One row a cell, as from :meth:`sample`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For an output that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        request, cells = self._ask(conditions, reference)
        plan = Plan.make(request, cells, n_samples, seed)
        random = generator(seed, self._device())
        latents = self._latents_of(cells, np.arange(len(cells)))
        own = self._groups(latents.draw(plan.reference, random))
        identity = self._population(latents, plan, random)
        rows = self._condition_tensors(request.conditions).rows(
            torch.from_numpy(plan.row).to(self._device())
        )
        with torch.inference_mode():
            basal = torch.randn(own.state.shape, generator=random, device=random.device)
            state = basal + self._response(rows, identity, random)
        latent = own._replace(identity=identity).with_state(state).cpu()
        obs = cell_obs(plan, request, cells, self._screen)
        library = cells.library[plan.reference]
        return self._decoded(latent, library, rows, obs, output=output, seed=seed)

    def _population(self, latents: Latents, plan: Plan, random: torch.Generator) -> torch.Tensor:
        """Draw identities of the population of the reference cells of each row."""
        spread, found = self.identity_spread_, []
        mean = self._groups(latents.mean).identity.double().numpy()
        for row in np.unique(plan.row):
            pool = np.unique(plan.reference[plan.row == row])
            noise = spread["within"] / len(pool)
            gain = spread["between"] @ np.linalg.inv(spread["between"] + noise)
            centre = spread["centre"] + gain @ (mean[pool].mean(axis=0) - spread["centre"])
            n = int((plan.row == row).sum())
            unit = torch.randn(n, len(centre), generator=random, device=random.device).cpu()
            values, vectors = np.linalg.eigh(spread["within"])
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            found.append(centre + unit.double().numpy() @ root.T)
        return torch.from_numpy(np.concatenate(found)).float().to(random.device)

    @torch.inference_mode()
    def _shifted(
        self, latent: torch.Tensor, conditions: ConditionTensors, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Return latents whose state is moved by conditions, one a cell; on the CPU."""
        own = self._groups(latent.to(self._device()))
        state = own.state + self._network.shift(conditions, own.identity, weight)
        return own.with_state(state).cpu()

    def _asked_operators(
        self, conditions: Sequence[str] | pd.DataFrame | Mapping[str, Mapping[str, float]]
    ) -> tuple[ConditionTensors, torch.Tensor | None, pd.DataFrame]:
        """Return conditions or sums of operators, their weights, and how they are called."""
        if isinstance(conditions, Mapping):
            return self._sums(conditions)
        request = parse_request(conditions, self._screen)
        if request.context or request.batch is not None:
            msg = "The cells say their context and batch; ask with conditions alone."
            raise SchemaError(msg)
        frame = self._screen.table.frame(request.conditions)
        names = {"perturbation": self._screen.keys.perturbation} | {
            name: column
            for name, column in (
                ("dose", self._screen.keys.dose),
                ("time", self._screen.keys.time),
                ("perturbation_type", self._screen.keys.kind),
            )
            if column is not None
        }
        return (
            self._condition_tensors(request.conditions),
            None,
            frame[list(names)].rename(columns=names),
        )
