"""What modules with a count decoder share: the scale of inputs, the likelihood, the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.module.base import BaseModuleClass
from torch import Tensor

from scvi_perturb._constants import LIBRARY_KEY, TARGET_SUM, X_KEY
from scvi_perturb.generative import normal_log_prob
from scvi_perturb.module._representation import CountParameters, Likelihood, counts_log_prob

if TYPE_CHECKING:
    from scvi_perturb._typing import Batch
    from scvi_perturb.nn import CountDecoder, Decoded

__all__ = ["CountModule"]


class CountModule(BaseModuleClass):
    """An autoencoder of counts, or of real values with a Normal likelihood."""

    decoder: CountDecoder
    n_genes: int
    likelihood: Likelihood
    #: Whether the data are real values as they are, and not counts.
    real_values = False

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, `(B, n_latent)` each."""
        raise NotImplementedError

    def transform(self, tensors: Batch) -> Tensor:
        """Return `log1p` counts per ten thousand, `(B, G)`; real values as they are."""
        if self.real_values:
            return tensors[X_KEY]
        return torch.log1p(tensors[X_KEY] * (TARGET_SUM / tensors[LIBRARY_KEY][:, None]))

    def log_prob(self, tensors: Batch, parameters: CountParameters) -> Tensor:
        """Return the log-likelihood of each cell in nats, `(B,)`."""
        if self.likelihood == "normal":
            return normal_log_prob(self.transform(tensors), *parameters[:2])
        nonzero = (tensors["rows"], tensors["columns"]) if "rows" in tensors else None
        return counts_log_prob(tensors[X_KEY], parameters, self.likelihood, nonzero=nonzero)

    def initialise(self, mean_proportions: Tensor) -> None:
        """Start the decoder at the mean profile of the training cells, `(n_genes,)`.

        Where the panel is partial, the rest of the library is the last proportion; of real values
        it is their mean.
        """
        if self.real_values:
            self.decoder.initialise_bias(mean_proportions)
            return
        if self.likelihood == "normal":
            self.decoder.initialise_bias(torch.log1p(TARGET_SUM * mean_proportions))
            return
        if len(self.decoder.logits.bias) > self.n_genes:
            other = (1.0 - mean_proportions.sum()).clamp_min(1e-4)
            mean_proportions = torch.cat([mean_proportions, other[None]])
        self.decoder.initialise_bias(torch.log(mean_proportions + 1e-7))

    def _get_inference_input(self, tensors: Batch, **_: object) -> dict[str, Batch]:
        return {"tensors": tensors}

    def inference(self, tensors: Batch) -> dict[str, Tensor]:
        """Return the posterior of the latent and one draw from it."""
        mean, log_variance = self.encode(tensors)
        noise = torch.randn_like(mean)
        return {
            "qz_m": mean,
            "qz_logv": log_variance,
            "z": mean + (0.5 * log_variance).exp() * noise,
        }

    def _count_parameters(self, decoded: Decoded, library: Tensor) -> CountParameters:
        dispersion = decoded.log_dispersion.float().clamp(-8, 12).exp()
        if self.likelihood == "normal":
            return CountParameters(decoded.logits.float(), dispersion, None)
        proportions = torch.softmax(decoded.logits.float(), dim=-1)[:, : self.n_genes]
        return CountParameters(proportions * library[:, None], dispersion, decoded.zero_logits)
