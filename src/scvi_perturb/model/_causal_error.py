"""How wrong the effects of operators on genes are: what so many cells leave open, and the rest.

The weights by which the decoder turns a state into genes are learned from cells, too. Given the
latents, those of one gene are a regression of its counts, and their covariance is the inverse of
the information in it (a Laplace approximation of the last layer: MacKay 1992, Daxberger et al.
2021). What that and the noise of the vectors leave out is measured on cells that were held out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np
import torch

from scvi_perturb._constants import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    LIBRARY_KEY,
    TARGET_SUM,
    X_KEY,
)
from scvi_perturb.data import group_controls
from scvi_perturb.model._draw import Drawn, expected_proportions
from scvi_perturb.model._latents import chunks

if TYPE_CHECKING:
    from scvi_perturb._typing import Batch
    from scvi_perturb.data import ScreenReader
    from scvi_perturb.module import ConditionTensors, CountParameters, GroupedAutoencoder

__all__ = ["USUAL", "HeldOutEffects", "excess", "shares", "weight_covariance"]

#: Training cells that the information is summed over.
MAX_CELLS: Final = 20_000
#: Precision of the prior of a weight, whose unit is one in log expression a standard deviation.
PRIOR: Final = 1.0
#: Genes whose information is inverted at once.
BLOCK: Final = 1024
#: Controls that stand for each held-out cell; conditions looked at; cells of one, least and most.
N_CONTROLS, MAX_CONDITIONS, FEWEST, MOST = 5, 50, 5, 200
#: Squared errors over what is stated, before any is measured, and how far that may be off: on
#: simulated screens it was 2.1 to 2.9.
USUAL, SPREAD = 2.5, 1.0


@torch.inference_mode()
def weight_covariance(
    network: GroupedAutoencoder, reader: ScreenReader, train: np.ndarray, *, seed: int
) -> np.ndarray:
    """Return the covariance of each gene's weights of the state, `(n_genes, n_state, n_state)`."""
    device = network.profile.device
    random = np.random.default_rng(seed)
    used = train
    if len(train) > MAX_CELLS:
        used = np.sort(random.choice(train, MAX_CELLS, replace=False))
    cut = network.sizes[0] + network.sizes[1]
    d = network.n_latent  # the depth's place is that of the intercept
    total = torch.zeros(network.n_genes, d * d, device=device)
    for rows in chunks(len(used)):
        tensors = {k: v.to(device) for k, v in reader[used[rows]].items()}
        latent, _ = network.encode(tensors)
        conditions = network.table.rows(tensors[CONDITION_KEY])
        made = network.decode(latent, tensors[LIBRARY_KEY], None, conditions)
        latent = latent.clone()
        latent[:, cut] = 1.0
        squares = (latent[:, :, None] * latent[:, None, :]).reshape(len(latent), -1)
        total += _information(made, network.likelihood).T @ squares.float()
    total *= len(train) / len(used)
    state = slice(network.sizes[0], cut)
    prior = PRIOR * torch.eye(d, dtype=torch.float64)
    found = []
    for genes in total.split(BLOCK):
        inverse = torch.linalg.inv(genes.cpu().double().reshape(-1, d, d) + prior)
        found.append(inverse[:, state, state].float().numpy())
    return np.concatenate(found)


def _information(made: CountParameters, likelihood: str) -> torch.Tensor:
    """Return what each count tells of the logarithm of its mean, `(n_cells, n_genes)`."""
    if likelihood == "normal":
        return made.dispersion.square().reciprocal().expand_as(made.mean)
    told = made.mean
    if likelihood != "poisson":
        told = told * made.dispersion / (told + made.dispersion)
    return told if made.zero_logits is None else told * torch.sigmoid(-made.zero_logits)


class HeldOutEffects(NamedTuple):
    """How far predictions of held-out cells are from what was measured, by condition.

    Attributes
    ----------
    code
        Of each condition with enough held-out cells, `(n,)`.
    squared
        Squared differences of the change of `log1p` counts per ten thousand, less what chance alone
        would make of them, summed over genes, `(n,)`.
    """

    code: np.ndarray
    squared: np.ndarray

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        network: GroupedAutoencoder,
        reader: ScreenReader,
        parts: tuple[np.ndarray, np.ndarray],
        *,
        seed: int,
    ) -> Self:
        """Compare held-out cells with training controls of their context and batch, moved.

        `parts` are training and held-out cells.
        """
        random = np.random.default_rng(seed)
        train, held = parts
        controls = train[reader.codes[CONDITION_KEY][train] == 0]
        rows = np.concatenate([controls, held])
        context, batch = (reader.codes[key][rows] for key in (CONTEXT_KEY, BATCH_KEY))
        groups = group_controls(context, batch, np.arange(len(rows)) < len(controls))
        code = reader.codes[CONDITION_KEY][held]
        sums = {}
        for own in _asked(network, code):
            at = random.permutation(np.flatnonzero(code == own))[:MOST]
            pools = [groups.pool(groups.group[len(controls) + i]) for i in at]
            chosen = np.stack([random.choice(pool, N_CONTROLS) for pool in pools])
            sums[own] = _residual(network, reader, held[at], rows[chosen])
        if 0 not in sums:
            return cls(np.zeros(0, dtype=np.int64), np.zeros(0))
        error, noise = sums.pop(0)
        squared = [((e - error) ** 2 - n - noise).sum() for e, n in sums.values()]
        return cls(np.array(list(sums), dtype=np.int64), np.array(squared))


def _asked(network: GroupedAutoencoder, code: np.ndarray) -> list[int]:
    """Return the control and the conditions with most cells, all of whose parts were trained on."""
    used, size = np.unique(code, return_counts=True)
    asked = used[np.argsort(-size, kind="stable")][: (size >= FEWEST).sum()]
    table = network.table.rows(torch.from_numpy(asked).to(network.profile.device))
    known = (network.seen[table.component] | ~table.mask).all(dim=1).cpu().numpy()
    treated = [int(c) for c in asked[known] if c != 0]
    return [*(int(c) for c in asked if c == 0), *treated[:MAX_CONDITIONS]]


def _residual(
    network: GroupedAutoencoder, reader: ScreenReader, cells: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean measured less predicted `log1p` expression of cells of one condition.

    And its sampling variance, `(n_genes,)` each. `starts` are controls for each cell, `(n, k)`.
    """
    device = network.profile.device
    share, away, squares = (np.zeros(network.n_genes) for _ in range(3))
    for part in chunks(len(cells), 256):
        batch: Batch = reader[cells[part]]
        counts, library = batch[X_KEY].numpy(), batch[LIBRARY_KEY].numpy()[:, None]
        tensors = {k: v.to(device) for k, v in reader[starts[part].ravel()].items()}
        code = batch[CONDITION_KEY].to(device).repeat_interleave(starts.shape[1])
        predicted = _expected(network, tensors, code).reshape(len(part), starts.shape[1], -1)
        own = predicted.mean(axis=1)
        difference = counts / np.maximum(library, 1.0) - own
        share += own.sum(axis=0)
        away += difference.sum(axis=0)
        squares += (difference**2).sum(axis=0)
    n = len(cells)
    slope = TARGET_SUM / (1.0 + TARGET_SUM * share / n)
    mean = away / n
    variance = np.maximum(squares / n - mean**2, 0.0) / (n - 1)
    return slope * mean, slope**2 * variance


def _expected(
    network: GroupedAutoencoder, tensors: dict[str, torch.Tensor], code: torch.Tensor
) -> np.ndarray:
    """Return the expected proportions of controls under conditions, `(n, n_genes)`."""
    latent, _ = network.encode(tensors)
    conditions = network.table.rows(code)
    own = network.groups(latent)
    state = own.state + network.shift(conditions, own.identity)
    stay, moved = (shares(network, z, conditions) for z in (latent, own.with_state(state)))
    responds = torch.sigmoid(network.log_odds(conditions)).cpu().numpy()[:, None]
    mixed: np.ndarray = stay + responds * (moved - stay)
    return mixed


def shares(
    network: GroupedAutoencoder,
    latent: torch.Tensor,
    conditions: ConditionTensors | None,
    weight: torch.Tensor | None = None,
) -> np.ndarray:
    """Return the expected proportions of genes in cells, `(n, n_genes)`; see `decode`."""
    one = torch.ones(len(latent), device=latent.device)
    parameters = network.decode(latent, one, None, conditions, weight)
    return expected_proportions(Drawn(np.arange(len(latent)), one, parameters), network.likelihood)


def excess(squared: np.ndarray, stated: np.ndarray) -> float:
    """Return squared errors over what was stated for them, at least 1.

    It is the ratio over all conditions, weighed against the usual one by how much it varies among
    them.

    Parameters
    ----------
    squared
        Measured squared errors of conditions, less chance; single ones may be below 0.
    stated
        Stated squared errors of the same; NaN where nothing was stated.
    """
    known = np.isfinite(stated)
    squared, stated = squared[known], stated[known]
    n, total = len(stated), float(stated.sum())
    if n < 3 or total <= 0:
        return USUAL
    ratio = float(squared.sum()) / total
    variance = n / (n - 1) * float(((squared - ratio * stated) ** 2).sum()) / total**2
    weight = SPREAD**2 / (SPREAD**2 + variance)
    return max(1.0, USUAL + weight * (ratio - USUAL))
