"""A conditional VAE that shifts its latent: a model of scvi-perturb in one module.

Stage one is the package's autoencoder of counts. Stage two is a Gaussian: a small network reads
the embedded condition and the latent of a control cell, and returns the mean and the spread of
the displacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scvi_perturb.model import LatentModel
from scvi_perturb.module import AutoencoderConfig, GeneratorConfig, LatentGenerator

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb import PerturbationFeatures, SamplerConfig
    from scvi_perturb.module import ConditionBatch

__all__ = ["LatentShift", "PerturbShift", "ShiftConfig"]


@dataclass(frozen=True, slots=True)
class ShiftConfig(GeneratorConfig):
    """Network and conditioning of a latent shift.

    Attributes
    ----------
    least_spread
        Least standard deviation of a displacement, in units of its spread over training cells.
    """

    least_spread: float = 0.05

    @property
    def generator_class(self) -> type[LatentGenerator]:
        """The generator that a model builds from this configuration."""
        return LatentShift

    @property
    def reference(self) -> str:
        """A cell starts from a control cell, and its displacement is drawn."""
        return "cell"


class LatentShift(LatentGenerator):
    """p(displacement | condition, control cell), a diagonal Gaussian."""

    config: ShiftConfig

    def make_network(self, n_latent: int, config: ShiftConfig) -> nn.Module:
        """Return a network from condition and reference to mean and spread."""
        return nn.Sequential(
            nn.Linear(config.n_condition + n_latent, config.width),
            nn.SiLU(),
            nn.Linear(config.width, 2 * n_latent),
        )

    def _displacement(
        self, network: nn.Module, condition: Tensor, reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of scaled displacements, `(B, n_latent)` each."""
        inputs = torch.cat([condition, self.standardise(reference)], dim=1)
        mean, spread = network(inputs).chunk(2, dim=1)
        return mean, nn.functional.softplus(spread) + self.config.least_spread

    def loss(self, tensors: dict[str, Tensor]) -> LossOutput:
        """Return the negative log-density of each cell's displacement, a dimension."""
        network, examples = self.networks.network, self.examples(tensors)
        mean, spread = self._displacement(network, examples.condition, examples.reference)
        loss = -torch.distributions.Normal(mean, spread).log_prob(examples.target).mean(1)
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    @torch.no_grad()
    def sample_latent(
        self, batch: ConditionBatch, *, sampler: SamplerConfig, generator: torch.Generator | None
    ) -> Tensor:
        """Draw latents of cells under conditions, `(B, n_latent)`, in one pass."""
        del sampler  # a Gaussian needs one pass, whatever the method
        embedded, _, row = self.embed(batch)
        mean, spread = self._displacement(self.average.network, embedded[row], batch.reference)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        effect = self.target_shift + self.additive_effect(batch.conditions)[batch.which]
        return batch.reference + effect + (mean + spread * noise) * self.target_scale


class PerturbShift(LatentModel):
    """Control cells, each shifted in the latent by a draw from a Gaussian.

    Parameters
    ----------
    adata
        A screen registered with `setup_anndata`.
    n_latent, n_hidden
        Latent dimension and width of stage one.
    shift
        Network and conditioning; None for the defaults.
    features
        What is known of perturbations, for those that the screen does not hold.
    seed
        Seed of the initial weights.
    registry
        Used when loading without data.
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        n_latent: int = 32,
        n_hidden: int = 128,
        shift: ShiftConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry, features)
        representation = AutoencoderConfig(n_latent=n_latent, n_hidden=n_hidden)
        self._build(representation, shift or ShiftConfig(), seed=seed)
        self.init_params_ = self._get_init_params(locals())  # what `load` makes the model with
