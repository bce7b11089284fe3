"""The likelihood of cells over many latents, against one latent at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.module.autoencoder import (
    AutoencoderConfig,
    CountAutoencoder,
    average_likelihood,
)

N_CELLS, N_GENES, N_LATENTS = 300, 40, 30


def _made(likelihood, dispersion):
    torch.manual_seed(0)
    config = AutoencoderConfig(n_latent=4, likelihood=likelihood, dispersion=dispersion)
    stage = CountAutoencoder(N_GENES, 2, config).eval()
    for parameter in stage.decoder.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    size = torch.exp(7 + 0.8 * torch.randn(N_CELLS))
    counts = torch.poisson(torch.rand(N_CELLS, N_GENES) ** 6 * size[:, None] / 6)
    tensors = {"X": counts, "library": size, "batch": torch.zeros(N_CELLS, dtype=torch.long)}
    return stage, tensors, torch.randn(N_LATENTS, 4)


@pytest.mark.parametrize(
    ("likelihood", "dispersion"),
    [
        ("nb", "gene"),
        ("nb", "gene-batch"),
        ("nb", "gene-cell"),
        ("poisson", "gene"),
        ("zinb", "gene"),
        ("normal", "gene"),
    ],
)
@pytest.mark.parametrize("n_cells", [1, 5, N_CELLS])
@torch.inference_mode()
def test_the_likelihood_is_that_of_each_latent_averaged(likelihood, dispersion, n_cells):
    stage, tensors, latents = _made(likelihood, dispersion)
    tensors = {key: values[:n_cells] for key, values in tensors.items()}
    batch = torch.zeros(N_LATENTS, dtype=torch.long)
    unit = stage.decode(latents, torch.ones(N_LATENTS), batch)
    found = average_likelihood(stage, tensors, unit)
    each = [
        stage.log_prob(
            tensors,
            stage.decode(z.expand(n_cells, -1), tensors["library"], tensors["batch"]),
        )
        for z in latents
    ]
    expected = torch.logsumexp(torch.stack(each).double(), dim=0) - np.log(N_LATENTS)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
