"""How likely cells are under their conditions, and draws from the posterior of single cells."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import coo_matrix, vstack

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY, LIBRARY_KEY
from scvi_perturb._random import generator
from scvi_perturb.data.matching import group_controls
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.draw import Drawn, draw_matrix
from scvi_perturb.model.base.latents import CHUNK, chosen_rows, chunks, encode_cells
from scvi_perturb.model.base.model import PerturbationModel
from scvi_perturb.model.base.setup import Screen, check_n_samples
from scvi_perturb.module.base import CountParameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from sparse import GCXS

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.model.base.request import Reference
    from scvi_perturb.module.base import ConditionTensors

__all__ = ["LikelihoodMixin", "PosteriorMixin"]


class PosteriorMixin(PerturbationModel):
    """Posterior-predictive samples of models with a representation."""

    def posterior_predictive_sample(
        self,
        adata: AnnData | MuData | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        indices: Sequence[int] | None = None,
        *,
        seed: int | None = 0,
    ) -> GCXS:
        """Draw counts from the posterior of each cell's latent, for `scvi.criticism`.

        Parameters
        ----------
        adata
            Data with the genes of training; None for the data of training.
        n_samples
            Draws a cell.
        batch_size
            Cells a batch.
        indices
            Cells, in the order wanted; None for all.
        seed
            Seed of the draws.

        Returns
        -------
        sparse.GCXS
            `(n_cells, n_genes, n_samples)`; without the last axis for a single draw.
        """
        self._check_likelihood()
        self.module.eval()
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), None)
        device, stage = self._device(), self._representation()
        random = generator(seed, device)
        mean, log_variance = encode_cells(stage, lambda i: reader[rows[i]], len(rows), device)
        draws = []
        for _ in range(n_samples):
            blocks = []
            for chunk in chunks(len(rows), batch_size or CHUNK):
                batch = reader[rows[chunk]]
                noise = torch.randn(mean[chunk].shape, generator=random, device=device)
                latent = (
                    mean[chunk].to(device) + (0.5 * log_variance[chunk].to(device)).exp() * noise
                )
                library = batch[LIBRARY_KEY].to(device)
                with torch.inference_mode():
                    parameters = self._decode_cells(latent, batch, adata)
                matrix = draw_matrix(Drawn(chunk, library, parameters), stage.likelihood, random)
                blocks.append(coo_matrix(matrix))
            draws.append(vstack(blocks, format="coo"))
        return _stacked(draws)

    @property
    def has_likelihood(self) -> bool:
        """Whether there is a likelihood: not where counts are drawn without one."""
        return self._representation().likelihood != "exact"

    def _check_likelihood(self) -> None:
        self._check_trained()
        if not self.has_likelihood:
            msg = (
                "A diffusion of counts (space='counts') draws them and has no likelihood to offer; "
                "train with space='latent'."
            )
            raise ValueError(msg)

    def _decode_cells(
        self, latent: torch.Tensor, batch: dict[str, torch.Tensor], adata: AnnData | MuData | None
    ) -> CountParameters:
        """Return the parameters of the counts of given cells at other latents."""
        del adata
        library, label = (batch[key].to(latent.device) for key in (LIBRARY_KEY, BATCH_KEY))
        return self._representation().decode(latent, library, label)


class LikelihoodMixin(PosteriorMixin):
    """Likelihood bounds of models that draw latents under conditions."""

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

        For each condition, context and batch, `n_samples` latents are drawn from the model,
        starting from training controls there, and the likelihood of a cell is averaged over
        them: `log 1/K sum_k p(x | z_k)`. Its expectation is a lower bound (Jensen) which rises
        to the log-likelihood with K; it is loose by several nats where a cell lies between
        draws, alike for all conditions. Differences between conditions are therefore more
        telling than values.

        Parameters
        ----------
        adata
            Data with the genes and columns of training; None for the data of training.
        indices
            Cells, in the order wanted; None for all.
        n_samples
            Latents per condition, K; None takes 256.
        seed
            Seed of the draws.
        key_added
            Column of `obs` to write to as well; needs `indices=None`.

        Returns
        -------
        numpy.ndarray
            `(n_cells,)`, nats.

        Raises
        ------
        NotTrainedError
            Before training.
        UnknownPerturbationError
            For cells with a perturbation neither trained on nor with features.
        ValueError
            When the model draws counts without a likelihood, or `n_samples` is below 1.
        """
        self._check_likelihood()
        check_n_samples(n_samples)
        n_samples = 256 if n_samples is None else n_samples
        self.module.eval()
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), key_added)
        values = np.full(len(rows), np.nan)
        random = generator(seed, self._device())
        keys = (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)
        codes = np.stack([reader.codes[key][rows] for key in keys], axis=1)
        table = Screen.from_registry(self._manager(adata).registry).table
        controls = self._encoded_controls()
        for code in np.unique(codes, axis=0):
            members = np.flatnonzero((codes == code).all(axis=1))
            reference = self._references(controls, code, n_samples, random)
            condition = table.conditions[code[0]]
            latents = self._latents_under(condition, code, reference, random)
            unit = self._unit_parameters(latents, condition, code)
            for chunk in np.array_split(members, -(-len(members) // 128)):
                values[chunk] = self._average_likelihood(reader[rows[chunk]], unit)
        if key_added is not None:
            (self.adata if adata is None else adata).obs[key_added] = values
        return values

    @abstractmethod
    def _draw_latents(
        self,
        conditions: ConditionTensors,
        which: torch.Tensor,
        reference: torch.Tensor,
        context: torch.Tensor,
        *,
        sampler: SamplerConfig,
        random: torch.Generator,
    ) -> torch.Tensor:
        """Draw a latent for each cell, see `LatentGenerator.sample_latent`."""

    def _encoded_controls(self) -> tuple[Reference, torch.Tensor, torch.Tensor]:
        """Return the training controls, and mean and log variance of their latents."""
        controls = self._training_controls()
        stage = self._representation()
        return controls, *encode_cells(stage, controls.read, len(controls), self._device())

    def _references(
        self,
        controls: tuple[Reference, torch.Tensor, torch.Tensor],
        code: np.ndarray,
        n_samples: int,
        random: torch.Generator,
    ) -> torch.Tensor:
        """Draw latents of training controls of the context and batch of a code."""
        cells, mean, log_variance = controls
        is_control = np.append(np.ones(len(cells), dtype=bool), False)
        context, batch = np.append(cells.context, code[1]), np.append(cells.batch, code[2])
        groups = group_controls(context, batch, is_control)
        pool = torch.from_numpy(groups.pool(int(groups.group[-1])))
        if self._population_reference:
            return mean[pool].mean(0, keepdim=True).expand(n_samples, -1).to(self._device())
        device = self._device()
        pick = pool[torch.randint(len(pool), (n_samples,), generator=random, device=device).cpu()]
        noise = torch.randn((n_samples, mean.shape[1]), generator=random, device=device)
        return mean[pick].to(device) + (0.5 * log_variance[pick]).exp().to(device) * noise

    def _latents_under(
        self,
        condition: Condition,
        code: np.ndarray,
        reference: torch.Tensor,
        random: torch.Generator,
    ) -> torch.Tensor:
        """Draw a latent under one condition from each reference."""
        tensors = self._vocabulary.tensors([condition], self._seen())
        n, device = len(reference), reference.device
        return self._draw_latents(
            type(tensors)(*(t.to(device) for t in tensors)),
            torch.zeros(n, dtype=torch.long, device=device),
            reference,
            torch.full((n,), int(code[1]), device=device),
            sampler=SamplerConfig(),
            random=random,
        )

    @torch.inference_mode()
    def _unit_parameters(
        self, latents: torch.Tensor, condition: Condition, code: np.ndarray
    ) -> CountParameters:
        """Return the parameters of counts of each latent at a library size of one.

        A latent's proportions are decoded once; each cell has its own library.
        """
        del condition
        batch = torch.full((len(latents),), int(code[2]), device=latents.device)
        one = torch.ones(len(latents), device=latents.device)
        return self._representation().decode(latents, one, batch)

    @torch.inference_mode()
    def _average_likelihood(
        self, batch: dict[str, torch.Tensor], unit: CountParameters
    ) -> np.ndarray:
        """Return `log 1/K sum_k p(x | z_k)` of each cell, `(B,)`."""
        device, stage = unit.mean.device, self._representation()
        batch = {key: value.to(device) for key, value in batch.items()}
        library = batch[LIBRARY_KEY][:, None]
        shape, scores = (len(library), unit.mean.shape[1]), []
        for k in range(len(unit.mean)):
            own = unit.mean[k].expand(shape)
            mean = own if stage.likelihood == "normal" else own * library
            spread = unit.dispersion[k] if unit.dispersion.ndim > 1 else unit.dispersion
            zeros = None if unit.zero_logits is None else unit.zero_logits[k].expand(shape)
            scores.append(stage.log_prob(batch, CountParameters(mean, spread, zeros)))
        stacked = torch.stack(scores).double()
        return (torch.logsumexp(stacked, dim=0) - np.log(len(unit.mean))).cpu().numpy()


def _stacked(draws: list[coo_matrix]) -> GCXS:
    """Return draws `(n_cells, n_genes)` along a third axis, if there are several."""
    # Not by `sparse.stack`, which compiles for seconds when it is first called.
    import sparse

    places = [np.stack([d.row, d.col, np.full(d.nnz, k)]) for k, d in enumerate(draws)]
    n_axes = 3 if len(draws) > 1 else 2
    cube = sparse.COO(
        np.concatenate(places, axis=1)[:n_axes],
        np.concatenate([d.data for d in draws]),
        shape=(*draws[0].shape, len(draws))[:n_axes],
    )
    return sparse.GCXS.from_coo(cube, compressed_axes=(0,))
