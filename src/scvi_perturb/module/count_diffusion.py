"""Discrete diffusion of binned counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb._core import Key
from scvi_perturb.generative.discrete import DiscreteDiffusion
from scvi_perturb.module.base import CountParameters
from scvi_perturb.module.generator import LatentGenerator
from scvi_perturb.nn.layers import CountNetwork

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi_perturb._core import Batch
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.module.base import ConditionBatch, Likelihood
    from scvi_perturb.module.diffusion import DiffusionConfig
    from scvi_perturb.module.generator import GeneratorConfig

#: Log variance of latents without noise.
_NO_VARIANCE: Final = -30.0
#: Counts below this are bins of their own.
_EXACT: Final = 12


class RawCounts(BaseModuleClass):
    """Encode counts as their `log1p`, decode by the inverse; there is nothing to train.

    `n_genes`: Number of genes.
    """

    likelihood: Likelihood = "exact"

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.n_latent = n_genes
        # scvi-tools asks a module for its device.
        self._device_marker = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return `log1p` counts, `(B, n_genes)`, known exactly."""
        values = tensors[Key.X].log1p()
        return values, torch.full_like(values, _NO_VARIANCE)

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> CountParameters:
        """Return the counts themselves; library and batch change nothing."""
        del library, batch
        return CountParameters(latent.expm1().round(), torch.ones_like(latent[:1]), None)


def bin_edges(largest: int, n_bins: int) -> Tensor:
    """Return the least count of each bin and one beyond the last, `(n_bins + 1,)`.

    Small counts have bins of their own; the others grow geometrically up to the largest count.
    """
    if largest < n_bins:
        return torch.arange(n_bins + 1)
    start = min(_EXACT, n_bins // 2)
    n = n_bins - start
    grown = start * (((largest + 1) / start) ** (torch.arange(n + 1) / n))
    edges = torch.cat([torch.arange(start), grown.round().long()])
    for i in range(1, len(edges)):  # no bin is empty
        edges[i] = max(int(edges[i]), int(edges[i - 1]) + 1)
    return edges


def bins_of(counts: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each count; counts beyond the last bin are in it."""
    return torch.bucketize(counts, edges[1:-1], right=True)


def draw_in_bins(bins: Tensor, edges: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a count of each bin, evenly in the logarithm."""
    low, high = edges[:-1][bins].float(), edges[1:][bins].float()
    share = torch.rand(bins.shape, generator=generator, device=bins.device)
    drawn = (low.clamp_min(1) * (high / low.clamp_min(1)) ** share).floor()
    single = high - low <= 1
    return torch.where(single, low, torch.minimum(drawn, high - 1))


#: Cells at a time: every gene of each has probabilities of all bins.
_ROWS = 256


class CountDiffusion(LatentGenerator):
    """p(counts | condition, context, control cell) by D3PM on bins of counts.

    The "latent" is `log1p` of the counts of all genes, see `RawCounts`. Inputs of the network
    are the counts of the control cell and the additive effect on each gene.

    References
    ----------
    Austin et al., Structured denoising diffusion models in discrete state-spaces, 2021.
    """

    config: DiffusionConfig

    @property
    def process(self) -> DiscreteDiffusion:
        """The diffusion of bins."""
        return DiscreteDiffusion(self.config.n_bins, self.config.transition)

    @property
    def edges(self) -> Tensor:
        """Least count of each bin and one beyond the last, `(n_bins + 1,)`."""
        return self.average.network.edges

    def make_network(self, n_latent: int, config: GeneratorConfig) -> nn.Module:
        """Return the network of counts."""
        return CountNetwork(
            n_latent,
            config.n_bins,  # type: ignore[attr-defined]
            config.n_condition,
            width=config.width,
            n_blocks=config.n_blocks,
            dropout=config.dropout,
        )

    def prepare_network(self, latents: Tensor) -> None:
        """Fix bins and frequencies of `log1p` counts."""
        # Distances between cells are those of log1p counts, all genes alike.
        self.latent_scale.fill_(1.0)
        self.latent_shift.zero_()
        if int(self.n_updates) > 0:  # weights were trained with the bins that there are
            return
        n_bins = self.config.n_bins
        edges = bin_edges(int(latents.max().expm1().round()), n_bins).to(latents.device)
        gene = n_bins * torch.arange(self.n_latent, device=latents.device)
        counts = torch.zeros(self.n_latent * n_bins, device=latents.device)
        for rows in latents.split(_ROWS):
            flat = gene + bins_of(rows.expm1().round().long(), edges)
            counts += torch.bincount(flat.flatten(), minlength=len(counts))
        shares = (counts.view(-1, n_bins) + 0.1) / (len(latents) + 0.1 * n_bins)
        for nets in (self.learned, self.average):
            nets.network.edges.copy_(edges)
            nets.network.bias.data.copy_(shares.log())

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the cross-entropy of the noised genes of each cell; none, if none is noised."""
        displacement, reference, effect, condition = self._draw_examples(tensors)
        x_0 = bins_of((reference + displacement).expm1().round().long(), self.edges)
        time = torch.rand(len(x_0), device=x_0.device)
        x_t = self.process.corrupt(x_0, time)
        counted = self._counted(x_t)
        inputs = self._inputs(x_t, reference, effect)
        logits = self.networks.network(inputs, time, condition, counted)
        entropy = functional.cross_entropy(logits, x_0[counted], reduction="none")
        total = torch.zeros_like(time).index_add(0, counted.nonzero()[:, 0], entropy)
        loss = total / counted.sum(1).clamp_min(1)
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    def _counted(self, x_t: Tensor) -> Tensor:
        """Return the mask of the states whose loss is taken: noised ones, of the step's genes."""
        if self.config.transition == "absorbing":
            counted = x_t == self.process.n_states
        else:
            counted = torch.ones_like(x_t, dtype=torch.bool)
        most = self.config.n_loss_genes
        if self.training and most is not None and most < self.n_latent:
            others = torch.randperm(self.n_latent, device=x_t.device)[most:]
            counted[:, others] = False
        return counted

    @torch.inference_mode()
    def sample_latent(
        self, batch: ConditionBatch, *, sampler: SamplerConfig, generator: torch.Generator | None
    ) -> Tensor:
        """Draw `log1p` counts of cells, see `LatentGenerator.sample_latent`.

        Ancestral steps, as many as the sampler has evaluations, whatever its method.
        """
        reference, device = batch.reference, batch.reference.device
        if generator is None:
            generator = torch.Generator(device)
            generator.seed()
        effect = self.additive_effect(batch.conditions)[batch.which]
        embedded, hidden, place = self.embed(batch)
        drawn = []
        for rows in torch.arange(len(reference), device=device).split(_ROWS):
            own = (embedded[place[rows]], hidden[place[rows]])
            classify = self._classifier(reference[rows], effect[rows], own, sampler.guidance_scale)
            bins = self.process.sample(
                classify,
                reference[rows].shape,
                n_evaluations=sampler.n_evaluations,
                generator=generator,
            )
            drawn.append(draw_in_bins(bins, self.edges, generator).log1p())
        return torch.cat(drawn)

    def _classifier(
        self, reference: Tensor, effect: Tensor, conditions: tuple[Tensor, Tensor], scale: float
    ) -> Callable[[Tensor, float, Tensor], Tensor]:
        """Return the probabilities of each bin; `conditions` are embedded, and hidden ones."""
        network, (known, hidden) = self.average.network, conditions

        def classify(x_t: Tensor, t: float, places: Tensor) -> Tensor:
            time = torch.full((len(x_t),), t, device=x_t.device, dtype=reference.dtype)
            logits = network(self._inputs(x_t, reference, effect), time, known, places)
            if scale != 1.0:
                inputs = self._inputs(x_t, reference, torch.zeros_like(effect))
                logits = torch.lerp(network(inputs, time, hidden, places), logits, scale)
            return logits.softmax(-1)

        return classify

    def _inputs(self, x_t: Tensor, reference: Tensor, effect: Tensor) -> list[Tensor]:
        """Return value, mask, reference and additive effect of each gene."""
        masked = x_t == self.process.n_states
        value = self.edges[x_t.clamp_max(self.config.n_bins - 1)].to(reference.dtype).log1p()
        return [value * ~masked, masked.to(reference.dtype), reference, effect]
