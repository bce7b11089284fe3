"""Batches of small cells, and the seed of everything drawn at random."""

from __future__ import annotations

import torch

N_CELLS, N_GENES, N_BATCH, N_LATENT = 6, 5, 3, 4


def make_batch(n=N_CELLS, *, seed=0, sparse=True):
    """Return a batch of counts; library sizes are those of the counts."""
    random = torch.Generator().manual_seed(seed)
    rates = torch.rand(n, N_GENES, generator=random) * 6
    counts = torch.poisson(rates, generator=random)
    counts[:, 0] += 1
    batch = {
        "X": counts,
        "library": counts.sum(1),
        "batch": torch.arange(n) % N_BATCH,
        "condition": torch.zeros(n, dtype=torch.long),
        "context": torch.zeros(n, dtype=torch.long),
    }
    if sparse:
        batch["rows"], batch["columns"] = torch.nonzero(counts, as_tuple=True)
    return batch


def stir(module, std=0.3):
    """Give every weight a value of its own."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module
