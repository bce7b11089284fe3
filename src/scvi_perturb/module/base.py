"""What modules have in common: condition tensors, representations, counts and their likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from scvi.module.base import BaseModuleClass
from torch import Tensor
from torch.nn import functional

from scvi_perturb._core import TARGET_SUM, Key
from scvi_perturb.generative.likelihoods import (
    nb_log_prob,
    normal_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)

if TYPE_CHECKING:
    from scvi_perturb._core import Batch
    from scvi_perturb.nn.layers import CountDecoder, Decoded


class ConditionTensors(NamedTuple):
    """Conditions as tensors: `component`, `dose`, `mask (n, m)` and `time (n,)`."""

    component: Tensor
    dose: Tensor
    mask: Tensor
    time: Tensor

    def rows(self, index: Tensor) -> ConditionTensors:
        """Return the conditions at `index`."""
        return ConditionTensors(*(field[index] for field in self))


class ConditionBatch(NamedTuple):
    """What cells are drawn from: for each of `B` cells a condition, a reference and a context.

    Attributes
    ----------
    conditions
        The different conditions, `n` of them.
    which
        Condition of each cell, `(B,)`, in `0..n-1`.
    reference
        Latent of each cell's reference: the control cell itself, or the mean of its control
        population, `(B, n_latent)`.
    context
        Context code of each cell, `(B,)`; codes never trained on count as unknown.
    """

    conditions: ConditionTensors
    which: Tensor
    reference: Tensor
    context: Tensor

    def rows(self, index: Tensor) -> ConditionBatch:
        """Return the batch of the cells at `index`."""
        which, reference, context = (x[index] for x in self[1:])
        return ConditionBatch(self.conditions, which, reference, context)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise of the shape, type and device of `x`."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


Likelihood = Literal["nb", "zinb", "poisson", "normal", "exact"]


class CountParameters(NamedTuple):
    """Distribution of the counts of each cell.

    Attributes
    ----------
    mean
        Expected counts before zero inflation, `(n_cells, n_genes)`; with a Normal likelihood the
        expected `log1p` counts per ten thousand; the counts themselves where they are drawn
        already (`"exact"`).
    dispersion
        Inverse dispersion, `(n_genes,)` or `(n_cells, n_genes)`; the standard deviation with a
        Normal likelihood; unused with Poisson.
    zero_logits
        Logits of zero inflation, or None.
    """

    mean: Tensor
    dispersion: Tensor
    zero_logits: Tensor | None


class Representation(Protocol):
    """A trained stage one: our own autoencoder, or a trained scVI."""

    n_latent: int
    likelihood: Likelihood

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent of each cell, `(B, n_latent)` each."""
        ...

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> CountParameters:
        """Return the parameters of the counts at `latent (B, n_latent)`, `library (B,)`."""
        ...


def counts_log_prob(tensors: Batch, parameters: CountParameters, likelihood: Likelihood) -> Tensor:
    """Return the log-likelihood of the counts of each cell of a batch, `(B,)`, in nats."""
    x, (mean, dispersion, zero_logits) = tensors[Key.X], parameters
    nonzero = (tensors["rows"], tensors["columns"]) if "rows" in tensors else None
    if likelihood == "poisson":
        return poisson_log_prob(x, mean, nonzero=nonzero)
    if zero_logits is not None:
        return zinb_log_prob(x, mean, dispersion, zero_logits, nonzero=nonzero)
    return nb_log_prob(x, mean, dispersion, nonzero=nonzero)


def batch_weights(batch: Tensor, seen: Tensor) -> Tensor:
    """Return one-hot rows `(B, n_batch)`; a batch never trained on is the mean of the others.

    With a single batch the result has no column.

    `batch`: Codes, `(B,)`; those beyond the registered ones are unknown. `seen`: Whether each
    registered batch was trained on, `(n_batch,)`.
    """
    n_batch = len(seen)
    if n_batch < 2:
        return torch.zeros(len(batch), 0, device=batch.device)
    code = batch.clamp(0, n_batch - 1)
    known = (batch == code) & seen[code]
    mean = seen.float() / seen.sum().clamp_min(1)
    return torch.where(known[:, None], functional.one_hot(code, n_batch).float(), mean)


def dispersion_of(decoded: Decoded) -> Tensor:
    """Return the inverse dispersions of decoded counts, single precision."""
    return decoded.log_dispersion.float().clamp(-8, 12).exp()


class CountModule(BaseModuleClass):
    """An autoencoder of counts, or of real values with a Normal likelihood."""

    decoder: CountDecoder
    n_genes: int
    likelihood: Likelihood
    #: Whether the data are real values as they are, and not counts.
    is_continuous = False

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, `(B, n_latent)` each."""
        raise NotImplementedError

    def transform(self, tensors: Batch) -> Tensor:
        """Return `log1p` counts per ten thousand, `(B, G)`; real values as they are."""
        if self.is_continuous:
            return tensors[Key.X]
        return torch.log1p(tensors[Key.X] * (TARGET_SUM / tensors[Key.LIBRARY][:, None]))

    def log_prob(self, tensors: Batch, parameters: CountParameters) -> Tensor:
        """Return the log-likelihood of each cell in nats, `(B,)`."""
        if self.likelihood == "normal":
            return normal_log_prob(self.transform(tensors), *parameters[:2])
        return counts_log_prob(tensors, parameters, self.likelihood)

    def initialise(self, mean_proportions: Tensor) -> None:
        """Start the decoder at the mean profile of the training cells, `(n_genes,)`.

        Where the panel is partial, the rest of the library is the last proportion; of real values
        it is their mean.
        """
        if self.is_continuous:
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
        mean, log_variance = (part.float() for part in self.encode(tensors))
        noise = torch.randn_like(mean)
        return {
            "qz_m": mean,
            "qz_logv": log_variance,
            "z": mean + (0.5 * log_variance).exp() * noise,
        }

    def _count_parameters(self, decoded: Decoded, library: Tensor) -> CountParameters:
        dispersion = dispersion_of(decoded)
        if self.likelihood == "normal":
            return CountParameters(decoded.logits.float(), dispersion, None)
        proportions = torch.softmax(decoded.logits.float(), dim=-1)[:, : self.n_genes]
        return CountParameters(proportions * library[:, None], dispersion, decoded.zero_logits)
