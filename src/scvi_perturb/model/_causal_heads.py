"""Heads of metadata, fitted further to latents that no longer change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from scvi_perturb.module import heads_loss

if TYPE_CHECKING:
    from scvi_perturb.module import CausalModule

__all__ = ["fit_heads"]

N_STEPS: Final = 400
LEARNING_RATE: Final = 5e-3
WEIGHT_DECAY: Final = 1e-2
BATCH_SIZE: Final = 1_024


def fit_heads(
    module: CausalModule,
    latents: tuple[torch.Tensor, torch.Tensor],
    fields: dict[str, torch.Tensor],
    condition: torch.Tensor,
    *,
    seed: int,
) -> None:
    """Fit the heads to draws of the latents of the training cells.

    While the latents were learned, the heads followed them; with few cells they are left behind.

    Parameters
    ----------
    module
        A trained module, whose heads start as those of its representation.
    latents
        Mean and log variance of the cells, `(n, n_latent)` each, on the CPU.
    fields, condition
        Their metadata and codes of conditions, `(n,)`, on the CPU.
    seed
        Seed of the order and of the draws.
    """
    network, heads = module.representation, module.heads
    if not heads:
        return
    heads.load_state_dict(network.heads.state_dict())
    device = network.profile.device
    mean, log_variance = latents
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, N_STEPS)
    for _ in range(N_STEPS):
        rows = torch.randint(len(mean), (min(BATCH_SIZE, len(mean)),), generator=random)
        noise = torch.randn(len(rows), mean.shape[1], generator=random)
        draw = mean[rows] + (0.5 * log_variance[rows]).exp() * noise
        groups = network.groups(draw.to(device))
        groups = groups._replace(technical=groups.technical[:, 1:])
        own = {name: values[rows].to(device) for name, values in fields.items()}
        loss = heads_loss(network, heads, groups, own, condition[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
