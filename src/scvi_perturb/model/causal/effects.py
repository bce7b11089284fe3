"""Effects of operators on genes, and their errors, of `CausalPerturbVAE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from scipy.stats import norm

from scvi_perturb._core import TARGET_SUM, Key
from scvi_perturb.data.matching import group_controls
from scvi_perturb.model.base.draw import Drawn, expected_proportions
from scvi_perturb.model.base.latents import chunks, encode_cells

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.data.condition_table import ConditionTable
    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.module.base import ConditionTensors, CountParameters
    from scvi_perturb.module.causal import GroupedAutoencoder


#: Reference cells that an effect is averaged over, and those that its slopes are taken at.
N_CELLS, N_SLOPES = 300, 60


class OperatorErrors(NamedTuple):
    """What the errors of effects are made of."""

    n_cells: np.ndarray  # training cells of each component id
    n_controls: int
    weight_covariance: np.ndarray  # of each gene's weights of the state, `(n_genes, n, n)`
    excess: float  # squared errors over those that chance leaves, at least 1

    def of_operator(
        self, conditions: ConditionTensors, weight: Tensor | None, share: float
    ) -> float:
        """Return the variance of each entry of an operator, that of means of so many cells."""
        mask = conditions.mask[0].cpu().numpy()
        ids = conditions.component[0].cpu().numpy()[mask]
        if len(ids) == 0:
            return 0.0
        factor = np.ones(len(ids)) if weight is None else weight[0].cpu().numpy()[mask]
        with np.errstate(divide="ignore"):
            own = factor**2 / (self.n_cells[ids] * share)
        total = float(own.sum() + factor.sum() ** 2 / max(self.n_controls, 1))
        return total if np.isfinite(total) else float("nan")

    def of_weights(self, operator: np.ndarray, profile: np.ndarray, likelihood: str) -> np.ndarray:
        """Return the variance of an effect that the decoder's weights leave, `(n_genes,)`."""
        if not operator.any():
            return np.zeros_like(profile)
        variance: np.ndarray = np.einsum(
            "s,gst,t->g", operator, self.weight_covariance, operator, optimize=True
        )
        if likelihood == "normal":
            return variance
        # Weights are of the logarithm of a mean m, profiles of that of 1 + m.
        return variance * (1.0 - np.exp(-profile)) ** 2


@torch.inference_mode()
def gene_effect(
    network: GroupedAutoencoder,
    latent: Tensor,
    conditions: ConditionTensors,
    weight: Tensor | None = None,
    *,
    control: np.ndarray,
    errors: OperatorErrors,
    interval: float = 0.9,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the mean operator over cells, and its effect on genes with its interval.

    `control` is the profile of the cells without the operator.
    """
    latent = latent.to(network.profile.device)
    own = network.groups(latent)
    shift = network.shift(conditions, own.identity, weight)
    operator = shift.mean(0).cpu().numpy()
    moved = own.with_state(own.state + shift)
    profile = expected_profile(network, moved, conditions, weight)
    share = responder_share(network, conditions)
    sd = float(np.sqrt(errors.of_operator(conditions, weight, share)))
    std = np.full_like(profile, np.nan)
    if np.isfinite(sd):
        some = slice(None, None, -(-len(moved) // N_SLOPES))
        variance = _operator_variance(network, moved[some], conditions, weight, sd=sd)
        of_weights = errors.of_weights(operator, profile, network.likelihood)
        std = np.sqrt(errors.excess * (variance + of_weights))
    centre, half = profile - control, norm.ppf(0.5 + interval / 2) * std
    return operator, {"lfc": centre, "lower": centre - half, "upper": centre + half, "std": std}


def _operator_variance(
    network: GroupedAutoencoder,
    latent: Tensor,
    conditions: ConditionTensors,
    weight: Tensor | None,
    *,
    sd: float,
) -> np.ndarray:
    """Return the variance of a profile whose operator has independent errors, `(n_genes,)`.

    By the delta method: slopes are those between one standard deviation above and below.
    """
    n_identity, n_state = network.sizes[:2]
    step = torch.zeros(2 * n_state, 1, latent.shape[1], device=latent.device)
    place = torch.arange(n_state, device=latent.device)
    step[place, 0, n_identity + place], step[n_state + place, 0, n_identity + place] = sd, -sd
    moved = (latent + step).flatten(0, 1)
    same = torch.zeros(len(moved), dtype=torch.long, device=latent.device)
    ends = _profiles(
        network, moved, conditions.rows(same), None if weight is None else weight[same], len(step)
    )
    variance: np.ndarray = np.square((ends[:n_state] - ends[n_state:]) / 2).sum(axis=0)
    return variance


def expected_profile(
    network: GroupedAutoencoder,
    latent: Tensor,
    conditions: ConditionTensors | None,
    weight: Tensor | None = None,
) -> np.ndarray:
    """Return `log1p` counts per ten thousand of the cells' summed expression, `(n_genes,)`.

    Of real values it is their mean.
    """
    return _profiles(network, latent, conditions, weight, 1)[0]


def _profiles(
    network: GroupedAutoencoder,
    latent: Tensor,
    conditions: ConditionTensors | None,
    weight: Tensor | None,
    n_parts: int,
) -> np.ndarray:
    """Return the profiles of equal parts of cells, one after another, `(n_parts, n_genes)`."""
    if network.is_continuous:
        one = torch.ones(len(latent), device=latent.device)
        values = network.decode(latent, one, None, conditions, weight).mean.cpu().numpy()
    else:
        values = _expected_shares(network, latent, conditions, weight)
    means: np.ndarray = values.reshape(n_parts, -1, values.shape[1]).mean(axis=1)
    return means if network.is_continuous else np.log1p(TARGET_SUM * means)


@torch.inference_mode()
def responder_share(network: GroupedAutoencoder, conditions: ConditionTensors) -> float:
    """Return the share of cells that respond to the first of some conditions."""
    return float(torch.sigmoid(network.log_odds(conditions))[0])


def _expected_shares(
    network: GroupedAutoencoder,
    latent: Tensor,
    conditions: ConditionTensors | None,
    weight: Tensor | None = None,
) -> np.ndarray:
    """Return the expected proportions of genes in cells, `(n, n_genes)`."""
    one = torch.ones(len(latent), device=latent.device)
    parameters = network.decode(latent, one, None, conditions, weight)
    return expected_proportions(Drawn(np.arange(len(latent)), one, parameters), network.likelihood)


#: Training cells that the information is summed over.
MAX_CELLS: Final = 20_000
#: Precision of the prior of a weight, whose unit is one in log expression a standard deviation.
PRIOR_PRECISION: Final = 1.0
#: Genes whose information is inverted at once.
GENE_BLOCK: Final = 1024


def measure_errors(
    network: GroupedAutoencoder,
    reader: ScreenReader,
    parts: tuple[np.ndarray, np.ndarray],
    table: ConditionTable,
) -> OperatorErrors:
    """Return the errors of operators; `parts` are training and held-out cells."""
    train, held = parts
    codes, counts = reader.codes[Key.CONDITION][train], np.zeros(network.operators.n_components)
    for code, size in zip(*np.unique(codes, return_counts=True), strict=True):
        for part in table.conditions[code].components:
            counts[table.component_index(part.name, part.kind)] += size
    covariance = weight_covariance(network, reader, train, seed=0)
    chance = OperatorErrors(counts, int((codes == 0).sum()), covariance, 1.0)
    excess = DEFAULT_EXCESS
    if not network.is_continuous and len(held) > 0:
        excess = _held_out_excess(network, reader, parts, chance)
    return chance._replace(excess=excess)


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
        conditions = network.table.rows(tensors[Key.CONDITION])
        made = network.decode(latent, tensors[Key.LIBRARY], None, conditions)
        latent = latent.clone()
        latent[:, cut] = 1.0
        squares = (latent[:, :, None] * latent[:, None, :]).reshape(len(latent), -1)
        total += _information(made, network.likelihood).T @ squares.float()
    total *= len(train) / len(used)
    state = slice(network.sizes[0], cut)
    prior = PRIOR_PRECISION * torch.eye(d, dtype=torch.float64)
    found = []
    for genes in total.split(GENE_BLOCK):
        inverse = torch.linalg.inv(genes.cpu().double().reshape(-1, d, d) + prior)
        found.append(inverse[:, state, state].float().numpy())
    return np.concatenate(found)


def _information(made: CountParameters, likelihood: str) -> Tensor:
    """Return what each count tells of the logarithm of its mean, `(n_cells, n_genes)`."""
    if likelihood == "normal":
        return made.dispersion.square().reciprocal().expand_as(made.mean)
    told = made.mean
    if likelihood != "poisson":
        told = told * made.dispersion / (told + made.dispersion)
    return told if made.zero_logits is None else told * torch.sigmoid(-made.zero_logits)


#: Controls that stand for each held-out cell, conditions compared, and cells of a condition.
N_CONTROLS, MAX_CONDITIONS, MIN_HELD_OUT, MAX_HELD_OUT = 5, 50, 5, 200
#: Squared errors over what is stated, before any is measured, and how far that may be off: on
#: simulated screens it was 2.1 to 2.9.
DEFAULT_EXCESS, EXCESS_SD = 2.5, 1.0


def _held_out_excess(
    network: GroupedAutoencoder,
    reader: ScreenReader,
    parts: tuple[np.ndarray, np.ndarray],
    errors: OperatorErrors,
) -> float:
    """Return squared errors on held-out cells over those stated."""
    codes, squared = held_out_errors(network, reader, parts, seed=0)
    random, device = np.random.default_rng(0), network.profile.device
    controls = parts[0][reader.codes[Key.CONDITION][parts[0]] == 0]
    rows = np.sort(random.permutation(controls)[:N_CELLS])
    latent, _ = encode_cells(network, lambda i: reader[rows[i]], len(rows), device)
    with torch.inference_mode():
        control = expected_profile(network, latent.to(device), None)
    stated = []
    for code in codes:
        one = network.table.rows(torch.full((len(latent),), int(code), device=device))
        _, gene = gene_effect(network, latent, one, control=control, errors=errors)
        stated.append(responder_share(network, one) ** 2 * float((gene["std"] ** 2).sum()))
    return error_excess(squared, np.array(stated))


def error_excess(squared: np.ndarray, stated: np.ndarray) -> float:
    """Return measured squared errors over those stated (NaN if unknown), at least 1.

    It is the ratio over all conditions, weighed against the default by how much it varies among
    them. Chance is taken from measured errors, of which single ones may be below 0.
    """
    known = np.isfinite(stated)
    squared, stated = squared[known], stated[known]
    n, total = len(stated), float(stated.sum())
    if n < 3 or total <= 0:
        return DEFAULT_EXCESS
    ratio = float(squared.sum()) / total
    variance = n / (n - 1) * float(((squared - ratio * stated) ** 2).sum()) / total**2
    weight = EXCESS_SD**2 / (EXCESS_SD**2 + variance)
    return max(1.0, DEFAULT_EXCESS + weight * (ratio - DEFAULT_EXCESS))


@torch.inference_mode()
def held_out_errors(
    network: GroupedAutoencoder,
    reader: ScreenReader,
    parts: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Compare held-out cells with shifted training controls of their context and batch.

    Return the codes of conditions with enough held-out cells, and the squared differences of their
    change of `log1p` counts per ten thousand, less those of chance alone, summed over genes.
    """
    random = np.random.default_rng(seed)
    train, held = parts
    controls = train[reader.codes[Key.CONDITION][train] == 0]
    rows = np.concatenate([controls, held])
    context, batch = (reader.codes[key][rows] for key in (Key.CONTEXT, Key.BATCH))
    groups = group_controls(context, batch, np.arange(len(rows)) < len(controls))
    code = reader.codes[Key.CONDITION][held]
    sums = {}
    for own in _comparable_conditions(network, code):
        at = random.permutation(np.flatnonzero(code == own))[:MAX_HELD_OUT]
        pools = [groups.pool(groups.group[len(controls) + i]) for i in at]
        chosen = np.stack([random.choice(pool, N_CONTROLS) for pool in pools])
        sums[own] = _residual(network, reader, held[at], rows[chosen])
    if 0 not in sums:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    error, noise = sums.pop(0)
    squared = [((e - error) ** 2 - n - noise).sum() for e, n in sums.values()]
    return np.array(list(sums), dtype=np.int64), np.array(squared)


def _comparable_conditions(network: GroupedAutoencoder, code: np.ndarray) -> list[int]:
    """Return the control and the conditions with most cells, all of whose parts were trained on."""
    used, size = np.unique(code, return_counts=True)
    large = used[np.argsort(-size, kind="stable")][: (size >= MIN_HELD_OUT).sum()]
    table = network.table.rows(torch.from_numpy(large).to(network.profile.device))
    known = (network.seen[table.component] | ~table.mask).all(dim=1).cpu().numpy()
    treated = [int(c) for c in large[known] if c != 0]
    return [*(int(c) for c in large if c == 0), *treated[:MAX_CONDITIONS]]


def _residual(
    network: GroupedAutoencoder, reader: ScreenReader, cells: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return measured less predicted mean `log1p` expression of a condition, and its variance.

    `(n_genes,)` each. `starts` are controls for each cell, `(n, k)`.
    """
    device = network.profile.device
    share, away, squares = (np.zeros(network.n_genes) for _ in range(3))
    for part in chunks(len(cells), 256):
        batch = reader[cells[part]]
        counts, library = batch[Key.X].numpy(), batch[Key.LIBRARY].numpy()[:, None]
        tensors = {k: v.to(device) for k, v in reader[starts[part].ravel()].items()}
        code = batch[Key.CONDITION].to(device).repeat_interleave(starts.shape[1])
        predicted = _expected_under(network, tensors, code).reshape(len(part), starts.shape[1], -1)
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


def _expected_under(
    network: GroupedAutoencoder, tensors: dict[str, Tensor], code: Tensor
) -> np.ndarray:
    """Return the expected proportions of controls under conditions, `(n, n_genes)`."""
    latent, _ = network.encode(tensors)
    conditions = network.table.rows(code)
    own = network.groups(latent)
    shifted = own.with_state(own.state + network.shift(conditions, own.identity))
    before, after = (_expected_shares(network, z, conditions) for z in (latent, shifted))
    responds = torch.sigmoid(network.log_odds(conditions)).cpu().numpy()[:, None]
    mixed: np.ndarray = before + responds * (after - before)
    return mixed
