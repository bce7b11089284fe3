"""How likely cells are under latent groups, and how odd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_perturb._constants import CONDITION_KEY, LIBRARY_KEY
from scvi_perturb._random import generator
from scvi_perturb.data import Condition
from scvi_perturb.model._causal_effects import CausalEffects
from scvi_perturb.model._checks import check_n_samples
from scvi_perturb.model._latents import chunks
from scvi_perturb.model._likelihood import PosteriorMixin
from scvi_perturb.model._screen import Screen
from scvi_perturb.nn import gaussian_log_prob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.model._causal_given import GivenCells
    from scvi_perturb.module import ConditionTensors, CountParameters

__all__ = ["CausalLikelihood"]

_CHUNK = 512


class CausalLikelihood(CausalEffects, PosteriorMixin):
    """`log_likelihood_bound` and `anomaly_scores`."""

    def log_likelihood_bound(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        n_samples: int | None = None,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> np.ndarray:
        """Return a lower bound on the log-likelihood of each cell's counts, its library given.

        `log 1/K sum_k p(x | z_k) p(z_k | condition, metadata) / q(z_k | x)` with latents drawn
        from the encoder; it rises to the log-likelihood with K.

        Parameters
        ----------
        adata, indices, seed, key_added
            As for :meth:`PerturbDiffusion.log_likelihood_bound`.
        n_samples
            Latents a cell, K; None takes 32.

        Returns
        -------
        numpy.ndarray
            `(n_cells,)`, nats.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, ValueError
            As for :meth:`PerturbDiffusion.log_likelihood_bound`.

        References
        ----------
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        check_n_samples(n_samples)
        n_samples = 32 if n_samples is None else n_samples
        given = self._given(adata, indices, key_added)
        values = self._bound(given, given.conditions, n_samples, seed)
        if key_added is not None:
            (self.adata if adata is None else adata).obs[key_added] = values
        return values

    def anomaly_scores(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        n_samples: int = 32,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Score cells by how little they fit their condition and metadata.

        Parameters
        ----------
        adata, indices
            As for :meth:`log_likelihood_bound`.
        n_samples
            Latents a cell.
        seed
            Seed of the draws.
        key_added
            Prefix of two columns of `obs` to write to as well, e.g. `"anomaly"` for
            `anomaly_surprise` and `anomaly_control_ratio`; needs `indices=None`.

        Returns
        -------
        pandas.DataFrame
            One row a cell, nats. `surprise`: minus the log-density of the mean latent under the
            priors given condition and metadata; the raw likelihood would follow the depth.
            `control_ratio`: the bound of the likelihood under control less that under the own
            condition, high for cells that look as if the perturbation had not reached them, 0
            for controls.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, ValueError
            As for :meth:`log_likelihood_bound`.
        """
        check_n_samples(n_samples)
        given = self._given(adata, indices, key_added)
        device = self._device()
        with torch.inference_mode():
            at_mean = self._prior_log_prob(
                given, np.arange(len(given)), given.latents.mean.to(device), given.conditions
            )
        none = self._condition_tensors([Condition()])
        control = none.rows(torch.zeros(len(given), dtype=torch.long, device=device))
        own, under = (self._bound(given, c, n_samples, seed) for c in (given.conditions, control))
        ratio = np.where(given.codes[CONDITION_KEY] == 0, 0.0, under - own)
        table = pd.DataFrame(
            {"surprise": -at_mean.cpu().numpy(), "control_ratio": ratio}, index=given.names
        )
        if key_added is not None:
            data = self.adata if adata is None else adata
            for name in table:
                data.obs[f"{key_added}_{name}"] = table[name].to_numpy()
        return table

    @torch.inference_mode()
    def _bound(
        self, given: GivenCells, conditions: ConditionTensors, n_samples: int, seed: int | None
    ) -> np.ndarray:
        """Return the importance-weighted bound of given cells under conditions, `(n_cells,)`."""
        device, network = self._device(), self._network
        # The same noise for all cells: what a cell gets does not depend on the others.
        shape = (n_samples, 1, network.n_latent)
        noises = torch.randn(shape, generator=generator(seed, device), device=device)
        values = np.zeros(len(given))
        for rows in chunks(len(given), _CHUNK):
            at = torch.from_numpy(rows)
            batch = {k: v.to(device) for k, v in given.reader[given.rows[rows]].items()}
            mean, log_variance = (
                network.groups(x[at].to(device))
                for x in (given.latents.mean, given.latents.log_variance)
            )
            own, weights = conditions.rows(at.to(device)), []
            for noise in noises:
                latent = given.latents.at(rows, noise)
                parameters = network.decode(latent, batch[LIBRARY_KEY], None, own)
                drawn = network.groups(latent)
                proposal = sum(
                    gaussian_log_prob(d, m, v)
                    for d, m, v in zip(
                        (drawn.identity, drawn.state, drawn.technical[:, 1:]),
                        (mean.identity, mean.state, mean.technical[:, 1:]),
                        (log_variance.identity, log_variance.state, log_variance.technical[:, 1:]),
                        strict=True,
                    )
                )
                prior = self._prior_log_prob(given, rows, latent, own)
                weights.append(network.log_prob(batch, parameters) + prior - proposal)
            bound = torch.logsumexp(torch.stack(weights).double(), dim=0) - np.log(n_samples)
            values[rows] = bound.cpu().numpy()
        return values

    def _prior_log_prob(
        self,
        given: GivenCells,
        rows: np.ndarray,
        latent: torch.Tensor,
        conditions: ConditionTensors,
    ) -> torch.Tensor:
        """Return the log-density of latents, depth left out, under their priors, `(n,)`."""
        network = self._network
        own = network.groups(latent)
        fields = given.latents.fields_of(rows, latent.device)
        total = network.identity_prior.log_prob(own.identity, fields)
        total = total + network.technical_prior.log_prob(own.technical[:, 1:], fields)
        shift, odds = network.shift(conditions, own.identity), network.log_odds(conditions)
        unit = torch.zeros_like(shift)
        moved = gaussian_log_prob(own.state, shift, unit)
        stayed = gaussian_log_prob(own.state, unit, unit)
        # Where all respond the odds are infinite, and the second part is nothing.
        mixed = torch.logaddexp(
            moved + torch.nn.functional.logsigmoid(odds),
            stayed + torch.nn.functional.logsigmoid(-odds),
        )
        state: torch.Tensor = total + mixed
        return state

    def _decode_cells(
        self, latent: torch.Tensor, batch: dict[str, torch.Tensor], adata: AnnData | MuData | None
    ) -> CountParameters:
        """Decode latents of given cells, edited genes corrected."""
        table, seen = Screen.from_registry(self._manager(adata).registry).table, self._seen()
        used, which = torch.unique(batch[CONDITION_KEY], return_inverse=True)
        known = {*self._vocabulary.known(seen)}
        # The posterior needs no operator: of what is not known only the correction is left out.
        own = [
            c if known.issuperset(c.names) else Condition()
            for c in (table.conditions[int(code)] for code in used)
        ]
        conditions = self._condition_tensors(own)
        rows = conditions.rows(which.to(latent.device))
        return self._network.decode(latent, batch[LIBRARY_KEY].to(latent.device), None, rows)
