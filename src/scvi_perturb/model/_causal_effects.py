"""Operators as tables: vectors, their size, and what they do to genes, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.stats import norm

from scvi_perturb._constants import CONDITION_KEY, TARGET_SUM
from scvi_perturb._errors import SchemaError
from scvi_perturb.model._causal_error import (
    USUAL,
    HeldOutEffects,
    excess,
    shares,
    weight_covariance,
)
from scvi_perturb.model._causal_verbs import CausalVerbs
from scvi_perturb.model._checks import check_interval
from scvi_perturb.model._latents import encode_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mudata import MuData

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.module import ConditionTensors

__all__ = ["CausalEffects"]

#: Reference cells that an effect is averaged over, and draws of operators for its interval.
N_CELLS, N_DRAWS = 300, 50


class CausalEffects(CausalVerbs):
    """`get_perturbation_effects` and `get_perturbation_representation`."""

    #: Number of training cells of each component id, and of controls.
    operator_cells_: np.ndarray
    n_controls_: int
    #: Covariance of each gene's weights of the state, `(n_genes, n_state, n_state)`.
    weight_covariance_: np.ndarray
    #: Squared errors of effects over those that chance leaves, at least 1.
    error_excess_: float

    def get_perturbation_representation(self, names: list[str] | None = None) -> pd.DataFrame:
        """Return the operator of each perturbation at its reference dose and time.

        Parameters
        ----------
        names
            Perturbations trained on or with features; None for all of them.

        Returns
        -------
        pandas.DataFrame
            `(n_perturbations, n_state)`, indexed by name; in standard deviations of the basal
            state of the average cell.

        Raises
        ------
        NotTrainedError
            Before training.
        UnknownPerturbationError
            For a name that is neither.
        """
        self._check_trained()
        seen = self._seen()
        names = self._vocabulary.known(seen) if names is None else list(names)
        ids = torch.tensor([self._vocabulary.id_of(name, seen) for name in names], dtype=torch.long)
        vectors = self._network.operators.vectors.detach().cpu()[ids]
        columns = [f"state_{i}" for i in range(vectors.shape[1])]
        return pd.DataFrame(
            vectors.numpy(), index=pd.Index(names, name="perturbation"), columns=columns
        )

    def get_perturbation_effects(
        self,
        names: Sequence[str] | pd.DataFrame | Mapping[str, Mapping[str, float]] | None = None,
        *,
        by_context: bool = False,
        reference: AnnData | MuData | None = None,
        interval: float = 0.9,
        seed: int | None = 0,
    ) -> AnnData:
        """Return what operators do to genes in reference cells that respond, with intervals.

        Parameters
        ----------
        names
            Perturbations, combinations or a table of conditions; or a mapping of a name of your
            own to weights, `{"A without B": {"A": 1, "B": -1}}`; None for all single
            perturbations that are known.
        by_context
            Whether there is one row for each context of the reference, else one over all.
        reference
            Control cells; None takes the training controls.
        interval
            Coverage aimed at. Intervals hold the error of a vector that is the mean of so many
            cells, that of the decoder's weights, and a factor for the rest, learned from how far
            effects are from those of validation cells. NaN for perturbations known by features
            alone.
        seed
            Seed of the choice of reference cells and of the intervals.

        Returns
        -------
        AnnData
            One row a perturbation (and context). `X`: change of `log1p` counts per ten thousand of
            the summed expression, also in layers `lower`, `upper`, `std`. `obs`: `norm`, the length
            of the operator in standard deviations of the basal state, `norm_error`, what chance
            alone makes of it; `responders`, the share of cells that respond. `obsm["operator"]`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        """
        check_interval(interval)
        if names is None:
            self._check_trained()
            names = self._vocabulary.known(self._seen())
            if not names:
                msg = "No perturbation was registered, so the model has no operators."
                raise SchemaError(msg)
        asked, weight, frame = self._asked_operators(names)
        pools = self._pools(reference, by_context=by_context, seed=seed)
        random = np.random.default_rng(seed)
        tables, layers, operators = [], [], []
        for labels, latent in pools:
            for i in range(len(frame)):
                one = asked.rows(torch.full((len(latent),), i, device=self._device()))
                own = None if weight is None else weight[i].expand(len(latent), -1)
                shift, gene = self._effect(latent, one, own, random, interval)
                share = self._share(one)
                error = float(np.sqrt(self._variance(one, own) * len(shift)))
                tables.append(
                    frame.iloc[i].to_dict()
                    | labels
                    | {
                        "norm": float(np.linalg.norm(shift)),
                        "norm_error": error,
                        "responders": share,
                    }
                )
                layers.append(gene)
                operators.append(shift)
        obs = pd.DataFrame(tables, index=[f"row{i}" for i in range(len(tables))])
        result = AnnData(
            np.stack([g["lfc"] for g in layers]),
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self._screen.genes)),
            layers={k: np.stack([g[k] for g in layers]) for k in ("lower", "upper", "std")},
            obsm={"operator": np.stack(operators)},
        )
        of = "values as given" if self._screen.real_values else "log1p(counts per 10,000)"
        result.uns = self._one_pass(seed, f"change of {of}")
        return result

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Remember how many cells each operator was learned from."""
        codes = reader.codes[CONDITION_KEY][train]
        table, counts = self._screen.table, np.zeros(self._network.operators.n_components)
        used, sizes = np.unique(codes, return_counts=True)
        for code, size in zip(used, sizes, strict=True):
            for part in table.conditions[code].components:
                counts[table.component_index(part.name, part.kind)] += size
        self.operator_cells_ = counts
        self.n_controls_ = int((codes == 0).sum())
        if self._screen.is_perturbed:
            self.weight_covariance_ = weight_covariance(self._network, reader, train, seed=0)
            self.error_excess_ = 1.0  # which what is stated is compared with
            self.error_excess_ = self._excess(reader, train)

    def _excess(self, reader: ScreenReader, train: np.ndarray) -> float:
        """Return how much larger squared errors on validation cells are than what is stated."""
        controls = train[reader.codes[CONDITION_KEY][train] == 0]
        if self._screen.real_values or len(self.validation_indices) == 0:
            return USUAL
        held = HeldOutEffects.of(
            self._network, reader, (train, np.asarray(self.validation_indices)), seed=0
        )
        random = np.random.default_rng(0)
        rows = np.sort(random.permutation(controls)[:N_CELLS])
        latent, _ = encode_cells(
            self._network, lambda i: reader[rows[i]], len(rows), self._device()
        )
        stated = []
        for code in held.code:
            one = self._condition_tensors([self._screen.table.conditions[code]])
            one = one.rows(torch.zeros(len(latent), dtype=torch.long, device=self._device()))
            _, gene = self._effect(latent, one, None, random, 0.9)
            stated.append(self._share(one) ** 2 * float((gene["std"] ** 2).sum()))
        return excess(held.squared, np.array(stated))

    def _pools(
        self, reference: AnnData | MuData | None, *, by_context: bool, seed: int | None
    ) -> list[tuple[dict[str, str], torch.Tensor]]:
        """Return the labels and basal latents of reference cells, in all or of each context."""
        if self._screen.real_values:
            random = np.random.default_rng(seed)
            rows = random.permutation(self.train_indices)[:N_CELLS]
            return [({}, self._basal(self._given(None, np.sort(rows).tolist())))]
        _, cells = self._ask([self._screen.table.control], reference)
        random = np.random.default_rng(seed)
        place: np.ndarray = np.zeros(len(cells), dtype=np.int64)
        labels: list[dict[str, str]] = [{}]
        columns = [c for c in self._screen.context_columns if c in cells.labels]
        if by_context and columns:
            groups = cells.labels.groupby(columns, observed=True, sort=True)
            place = groups.ngroup().to_numpy()
            firsts = cells.labels.iloc[np.unique(place, return_index=True)[1]]
            records = firsts[columns].astype(str).itertuples(index=False)
            labels = [dict(zip(columns, record, strict=True)) for record in records]
        found = []
        for i, own in enumerate(labels):
            rows = np.flatnonzero(place == i)
            if len(rows) > N_CELLS:
                rows = np.sort(random.choice(rows, N_CELLS, replace=False))
            latents = self._latents_of(cells, rows)
            found.append((own, latents.mean))
        return found

    @torch.inference_mode()
    def _effect(
        self,
        latent: torch.Tensor,
        conditions: ConditionTensors,
        weight: torch.Tensor | None,
        random: np.random.Generator,
        interval: float,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the mean operator over cells, and its effect on genes with its interval."""
        latent = latent.to(self._device())
        own = self._groups(latent)
        shift = self._network.shift(conditions, own.identity, weight)
        operator = shift.mean(0).cpu().numpy()
        control = self._profile(latent, None)
        profile = self._profile(own.with_state(own.state + shift), conditions, weight)
        sd = float(np.sqrt(self._variance(conditions, weight)))
        std = np.full_like(profile, np.nan)
        if np.isfinite(sd):
            draws = []
            for _ in range(N_DRAWS):
                noise = sd * random.standard_normal(shift.shape[1]).astype(np.float32)
                moved = own.state + shift + torch.from_numpy(noise).to(shift.device)
                draws.append(self._profile(own.with_state(moved), conditions, weight))
            std = np.sqrt(
                self.error_excess_
                * (np.var(draws, axis=0, ddof=1) + self._weight_variance(operator, profile))
            )
        centre, half = profile - control, norm.ppf(0.5 + interval / 2) * std
        return operator, {"lfc": centre, "lower": centre - half, "upper": centre + half, "std": std}

    def _weight_variance(self, operator: np.ndarray, profile: np.ndarray) -> np.ndarray:
        """Return the variance of an effect that is due to the decoder's weights, `(n_genes,)`."""
        if not operator.any():
            return np.zeros_like(profile)
        variance: np.ndarray = np.einsum(
            "s,gst,t->g", operator, self.weight_covariance_, operator, optimize=True
        )
        if self._network.likelihood == "normal":
            return variance
        # Weights are of the logarithm of a mean m, profiles of that of 1 + m.
        return variance * (1.0 - np.exp(-profile)) ** 2

    def _variance(self, conditions: ConditionTensors, weight: torch.Tensor | None) -> float:
        """Return the variance of each entry of an operator: that of means of so many cells."""
        mask = conditions.mask[0].cpu().numpy()
        ids = conditions.component[0].cpu().numpy()[mask]
        if len(ids) == 0:
            return 0.0
        factor = np.ones(len(ids)) if weight is None else weight[0].cpu().numpy()[mask]
        cells = self.operator_cells_[ids] * self._share(conditions)
        with np.errstate(divide="ignore"):
            own = factor**2 / cells
        control = factor.sum() ** 2 / max(self.n_controls_, 1)
        total = float(own.sum() + control)
        return total if np.isfinite(total) else float("nan")

    @torch.inference_mode()
    def _share(self, conditions: ConditionTensors) -> float:
        """Return the share of cells that respond to the first of some conditions."""
        return float(torch.sigmoid(self._network.log_odds(conditions))[0])

    def _profile(
        self,
        latent: torch.Tensor,
        conditions: ConditionTensors | None,
        weight: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Return `log1p` counts per ten thousand of the cells' summed expression, `(n_genes,)`."""
        if self._screen.real_values:
            one = torch.ones(len(latent), device=latent.device)
            values = self._network.decode(latent, one, None, conditions, weight)
            return values.mean.mean(0).cpu().numpy()
        share = shares(self._network, latent, conditions, weight).mean(axis=0)
        profile: np.ndarray = np.log1p(TARGET_SUM * share)
        return profile
