"""Stage one: the autoencoder of counts, or a trained scVI in its place; likelihoods under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scvi.module import VAE
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import NON_ZEROS, Key
from scvi_perturb.generative.likelihoods import nb_log_prob_of_logits
from scvi_perturb.module.base import (
    CountModule,
    CountParameters,
    Likelihood,
    batch_weights,
    counts_log_prob,
    dispersion_of,
)
from scvi_perturb.nn.layers import (
    CountDecoder,
    Decoded,
    Dispersion,
    ExpressionEncoder,
    SparseRows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb._core import Batch

#: Cells of like library size that share a table.
_AT_ONCE: Final = 128
#: Share of a difference between latents that interpolation may lose.
_LOST: Final = 1e-7
#: Added to means before their logarithm, as likelihoods do.
_EPSILON: Final = 1e-8


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
        return counts_log_prob(tensors, parameters, self.likelihood)

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, `(B, n_latent)` each."""
        posterior = self.vae.inference(tensors[Key.X], self._batch(tensors[Key.BATCH]))["qz"]
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


@checked
@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """Size and likelihood of stage one.

    Attributes
    ----------
    n_latent, n_hidden, n_layers
        Dimension of the latent, width and number of hidden layers.
    likelihood
        Negative binomial, zero-inflated negative binomial, Poisson; or Normal on `log1p`
        counts per ten thousand, without count semantics.
    dispersion
        One per gene, per gene and batch, or per gene and cell (scVI's names).
    decoder
        `"linear"` gives loadings that can be read as gene programs.
    dropout
        In the encoder, while training.
    """

    n_latent: int = 32
    n_hidden: int = 128
    n_layers: int = 2
    likelihood: Likelihood = "nb"
    dispersion: Dispersion = "gene"
    decoder: Literal["mlp", "linear"] = "mlp"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice("likelihood", self.likelihood, ("nb", "zinb", "poisson", "normal"))


class CountAutoencoder(CountModule):
    """Encode counts, decode proportions; the library size is given, never learned.

    Parameters
    ----------
    n_genes, n_batch
        Sizes of the data.
    config
        Size and likelihood.
    partial_panel
        Whether library sizes count genes that the data do not hold; the decoder then has one
        more proportion, for all of those.
    """

    seen_batch: Tensor

    def __init__(
        self, n_genes: int, n_batch: int, config: AutoencoderConfig, *, partial_panel: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.n_genes = n_genes
        self.n_latent, self.likelihood = config.n_latent, config.likelihood
        self.register_buffer("seen_batch", torch.ones(n_batch, dtype=torch.bool))
        n_columns = n_batch if n_batch > 1 else 0
        self.encoder = ExpressionEncoder(
            n_genes,
            n_columns,
            config.n_latent,
            n_hidden=config.n_hidden,
            n_layers=config.n_layers,
            dropout=config.dropout,
        )
        self.decoder = CountDecoder(
            config.n_latent,
            n_genes,
            n_columns,
            n_other=int(partial_panel and config.likelihood != "normal"),
            # Poisson has none: no head is built that it would ignore.
            dispersion="gene" if config.likelihood == "poisson" else config.dispersion,
            zero_inflated=config.likelihood == "zinb",
            n_hidden=config.n_hidden,
            n_layers=0 if config.decoder == "linear" else 1,
        )

    @property
    def reads_sparse(self) -> bool:
        """Whether batches may hold the non-zeros alone: no step needs the others one by one."""
        return self.likelihood == "nb" and self.config.dispersion == "gene"

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, `(B, n_latent)` each."""
        batches = batch_weights(tensors[Key.BATCH], self.seen_batch)
        if Key.X in tensors:
            counts = tensors[Key.X]
            inputs = self.transform(tensors) if self.likelihood == "normal" else counts.log1p()
            return self.encoder(inputs, batches)
        values, columns, starts = (tensors[name] for name in NON_ZEROS)
        return self.encoder(SparseRows(values.log1p(), columns, starts, batches))

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> CountParameters:
        """Return the parameters of the counts at `latent (B, n_latent)`, `library (B,)`."""
        return self._count_parameters(
            self.decoder(latent, batch_weights(batch, self.seen_batch)), library
        )

    def _get_generative_input(
        self, tensors: Batch, inference_outputs: dict[str, Tensor], **_: object
    ) -> dict[str, Any]:
        return {
            "latent": inference_outputs["z"],
            "library": tensors[Key.LIBRARY],
            "batch": tensors[Key.BATCH],
            "sparse": self.reads_sparse and NON_ZEROS[0] in tensors,
        }

    def generative(
        self, latent: Tensor, library: Tensor, batch: Tensor, *, sparse: bool = False
    ) -> dict[str, CountParameters | Decoded]:
        """Return the parameters of the counts; for `sparse` batches before the softmax."""
        if sparse:
            return {"px": self.decoder(latent, batch_weights(batch, self.seen_batch))}
        return {"px": self.decode(latent, library, batch)}

    def loss(
        self,
        tensors: Batch,
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, CountParameters | Decoded],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Return the negative evidence lower bound, its divergence weighted by `kl_weight`."""
        parameters = generative_outputs["px"]
        if isinstance(parameters, CountParameters):
            reconstruction = -self.log_prob(tensors, parameters)
        else:
            values, columns, starts = (tensors[name] for name in NON_ZEROS)
            reconstruction = -nb_log_prob_of_logits(
                (values, columns, starts),
                parameters.logits,
                tensors[Key.LIBRARY],
                dispersion_of(parameters),
            )
        mean, log_variance = inference_outputs["qz_m"], inference_outputs["qz_logv"]
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return LossOutput(
            loss=(reconstruction + kl_weight * divergence).mean(),
            reconstruction_loss=reconstruction,
            kl_local=divergence,
        )


@torch.inference_mode()
def average_likelihood(
    stage: CountAutoencoder | ScviRepresentation, batch: Batch, unit: CountParameters
) -> np.ndarray:
    """Return `log 1/K sum_k p(x | z_k)` of each cell, `(B,)`.

    `unit` are the parameters of the counts at the latents `z_k` and a library size of one.
    """
    device = unit.mean.device
    batch = {key: value.to(device) for key, value in batch.items()}
    spread = unit.dispersion
    if spread.ndim > 1 and bool((spread == spread[:1]).all()):
        spread = spread[0]
    if stage.likelihood in ("nb", "poisson") and spread.ndim == 1:
        theta = spread if stage.likelihood == "nb" else None
        score = _under(stage, batch, unit, 0).double()[:, None].repeat(1, len(unit.mean))
        for rows in batch[Key.LIBRARY].argsort().split(_AT_ONCE):
            nodes, weights = _interpolation(batch[Key.LIBRARY][rows].cpu().double().numpy())
            for node, weight in zip(nodes, weights.T, strict=True):
                gain = _gain(batch[Key.X][rows], float(node) * unit.mean, theta)
                score[rows] += torch.from_numpy(weight).to(device)[:, None] * gain
    else:
        each = [_under(stage, batch, unit, k) for k in range(len(unit.mean))]
        score = torch.stack(each, dim=1).double()
    return (torch.logsumexp(score, dim=1) - math.log(len(unit.mean))).cpu().numpy()


def _under(
    stage: CountAutoencoder | ScviRepresentation, batch: Batch, unit: CountParameters, k: int
) -> Tensor:
    """Return the log-likelihood of each cell at the latent `k`, `(B,)`."""
    shape = batch[Key.X].shape
    mean = unit.mean[k].expand(shape)
    if stage.likelihood != "normal":
        mean = mean * batch[Key.LIBRARY][:, None]
    spread = unit.dispersion[k] if unit.dispersion.ndim > 1 else unit.dispersion
    zeros = None if unit.zero_logits is None else unit.zero_logits[k].expand(shape)
    return stage.log_prob(batch, CountParameters(mean, spread, zeros))


def _interpolation(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return library sizes `(n,)` and weights `(B, n)` by which functions at them are summed.

    A log-likelihood is analytic in the logarithm of the library size, its singularities lie at a
    distance of pi from the real line: polynomials through a few Chebyshev nodes are exact.
    """
    logs = np.log(sizes)
    own, place = np.unique(logs, return_inverse=True)
    centre, half = (own[-1] + own[0]) / 2, max(own[-1] - own[0], 1e-9) / 2
    degree = math.ceil(-math.log(_LOST) / math.asinh(math.pi / half))
    if degree + 1 >= len(own):
        return np.exp(own), np.eye(len(own))[place]
    points = chebyshev.chebpts1(degree + 1)
    values = np.linalg.inv(chebyshev.chebvander(points, degree))
    return np.exp(centre + half * points), chebyshev.chebvander(
        (logs - centre) / half, degree
    ) @ values


def _gain(x: Tensor, mean: Tensor, theta: Tensor | None) -> Tensor:
    """Return log-likelihoods of counts at each mean over those at the first, `(B, K)`.

    `x`: Counts, `(B, n_genes)`. `mean`: `(K, n_genes)`. `theta`: Inverse dispersions, `(n_genes,)`;
    None for Poisson.
    """
    told = torch.log(mean + _EPSILON)
    if theta is None:
        away = (mean - mean[0]).sum(1)
    else:
        excess = torch.log1p(mean / theta)
        away = (excess - excess[0]) @ theta
        told -= excess
    return x @ (told - told[0]).T - away
