"""How likely simulated cells truly are, their library given: by importance sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scvi_perturb.data import Condition
from scvi_perturb.data.simulate.screen import Truth
from scvi_perturb.generative import nb_log_prob

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["true_log_likelihood"]

_NEWTON: Final = 25
#: Spread of the proposal over that of Laplace's approximation: its tails must be wider.
_WIDER: Final = 1.15


def true_log_likelihood(
    adata: AnnData, *, n_samples: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return `log p(counts | condition, context, batch, library)` of cells, and its error.

    The simulator's factors are integrated out: Laplace's approximation about the mode is the
    proposal, once for responders and once for the others, and draws are weighted. As in the
    models, the mean of the counts is the observed library times the proportions.

    Returns
    -------
    tuple
        Nats and standard errors, `(n_cells,)`.
    """
    truth = Truth.from_uns(adata.uns)
    random = torch.Generator().manual_seed(seed)
    found = [_cell(adata, i, truth, n_samples, random) for i in range(adata.n_obs)]
    values, errors = zip(*found, strict=True)
    return np.array(values), np.array(errors)


def _cell(
    adata: AnnData, i: int, truth: Truth, n_samples: int, random: torch.Generator
) -> tuple[float, float]:
    config, obs = truth.config, adata.obs.iloc[i]
    counts = torch.from_numpy(np.asarray(adata.X[i].todense(), np.float64).ravel())
    context = int(np.flatnonzero(truth.contexts == obs["cell_type"])[0])
    batch = int(np.flatnonzero(truth.batches == obs["batch"])[0])
    condition = Condition.parse(str(obs["perturbation"]))
    shift = np.zeros(config.n_state) if condition.is_control else truth.shift(condition)[context]
    share = config.responder_fraction
    cases = [(1.0, 0.0)] if condition.is_control else [(share, 1.0), (1 - share, 0.0)]
    technical = np.full(config.n_technical, 0.25 * config.batch_effect)
    technical[0] = 1.0
    spread = np.concatenate(
        [
            np.full(config.n_identity, config.identity_sd),
            np.full(config.n_state, config.state_sd),
            technical,
        ]
    )
    loadings = np.hstack([truth.loadings_identity, truth.loadings_state, truth.loadings_technical])
    parts, noise = [], 0.0
    for weight, moved in cases:
        if weight == 0:
            continue
        mean = np.concatenate(
            [truth.context_centroids[context], moved * shift, truth.batch_centroids[batch]]
        )
        value, error = _marginal(
            counts,
            torch.from_numpy(truth.base + loadings @ mean),
            torch.from_numpy(loadings * spread),
            torch.from_numpy(truth.dispersion),
            n_samples,
            random,
        )
        parts.append(np.log(weight) + value)
        noise = max(noise, error)
    return float(np.logaddexp.reduce(parts)), noise


def _marginal(
    counts: torch.Tensor,
    base: torch.Tensor,
    loadings: torch.Tensor,
    theta: torch.Tensor,
    n_samples: int,
    random: torch.Generator,
) -> tuple[float, float]:
    """Integrate standard normal factors out of `NB(library * softmax(base + loadings z))`."""
    library, n = counts.sum(), loadings.shape[1]

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        mean = library * torch.softmax(base + z @ loadings.T, dim=-1)
        likelihood = nb_log_prob(counts.expand(mean.shape), mean, theta)
        return likelihood - 0.5 * z.square().sum(-1) - 0.5 * n * np.log(2 * np.pi)

    mode, hessian = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    for _ in range(_NEWTON):
        point = mode.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_joint(point[None])[0], point)
        proportions = torch.softmax(base + loadings @ mode, 0)
        mean = library * proportions
        weight = mean / (1 + mean / theta)
        centred = loadings - proportions @ loadings
        hessian = centred.T @ (weight[:, None] * centred) + torch.eye(n, dtype=torch.float64)
        step = torch.linalg.solve(hessian, gradient)
        mode = mode + step * min(1.0, 2.0 / float(step.norm().clamp_min(1e-9)))
    root = torch.linalg.cholesky(torch.linalg.inv(hessian)) * _WIDER
    noise = torch.randn(n_samples, n, generator=random, dtype=torch.float64)
    proposal = -0.5 * noise.square().sum(1) - 0.5 * n * np.log(2 * np.pi)
    proposal = proposal - root.diagonal().log().sum()
    weights = (log_joint(mode + noise @ root.T) - proposal).detach()
    value = torch.logsumexp(weights, 0) - np.log(n_samples)
    relative = (weights - value).exp().std() / np.sqrt(n_samples)
    return float(value), float(relative)
