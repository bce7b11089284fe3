"""Stage one by a trained scVI model: its encoder gives the latent, its decoder the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi.module import VAE
from torch import Tensor, nn

from scvi_perturb._constants import BATCH_KEY, X_KEY
from scvi_perturb.module._representation import CountParameters, Likelihood, counts_log_prob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb._typing import Batch

__all__ = ["ScviRepresentation"]


class ScviRepresentation(nn.Module):
    """Wrap scvi-tools' VAE as a representation.

    Parameters
    ----------
    settings
        Arguments of :class:`scvi.module.VAE`, as :func:`scvi_settings` reads them off a model.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.vae = VAE(**settings)
        self.n_latent: int = self.vae.n_latent
        self.n_batch: int = max(int(self.vae.n_batch), 1)
        self.likelihood: Likelihood = self.vae.gene_likelihood

    def log_prob(self, tensors: Batch, parameters: CountParameters) -> Tensor:
        """Return the log-likelihood of each cell in nats, `(B,)`."""
        nonzero = (tensors["rows"], tensors["columns"]) if "rows" in tensors else None
        return counts_log_prob(tensors[X_KEY], parameters, self.likelihood, nonzero=nonzero)

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, `(B, n_latent)` each."""
        posterior = self.vae.inference(tensors[X_KEY], self._batch(tensors[BATCH_KEY]))["qz"]
        return posterior.loc, 2 * posterior.scale.log()

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> CountParameters:
        """Return the parameters of the counts at `latent (B, n_latent)`, `library (B,)`."""
        index = self._batch(batch)
        # Of a logistic-normal latent, scVI decodes the softmax; of a normal one, itself.
        latent = self.vae.z_encoder.z_transformation(latent)
        px = self.vae.generative(latent, library.log()[:, None], index)["px"]
        mean = getattr(px, "mu", None)
        if mean is None:
            return CountParameters(px.rate, torch.ones_like(px.rate), None)
        return CountParameters(mean, px.theta, getattr(px, "zi_logits", None))

    def _batch(self, batch: Tensor) -> Tensor:
        """Return scVI's batch index, `(B, 1)`; batches it does not know count as its first."""
        known = (batch >= 0) & (batch < self.n_batch)
        return torch.where(known, batch, torch.zeros_like(batch))[:, None]
