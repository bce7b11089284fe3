"""Training of `CausalPerturbVAE`: where it starts, its stage, and what is fitted after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from sklearn.utils.extmath import randomized_svd

from scvi_perturb._core import Key, SchemaError
from scvi_perturb.data.matching import group_controls
from scvi_perturb.model.base.additive import fit_additive
from scvi_perturb.model.base.latents import chunks, encode_cells
from scvi_perturb.model.base.reference import reference_doses, to_tensors
from scvi_perturb.model.base.setup import check_known_labels, check_training_cells
from scvi_perturb.model.base.training import (
    mean_proportions,
)
from scvi_perturb.model.causal.draw import metadata_tensors
from scvi_perturb.module.causal import heads_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.data.screen import Screen
    from scvi_perturb.model.base.additive import AdditiveFit
    from scvi_perturb.model.base.reference import Vocabulary
    from scvi_perturb.module.causal import CausalModule, GroupedAutoencoder
    from scvi_perturb.train.runner import Stage


@dataclass(frozen=True, slots=True)
class TrainingCells:
    """The cells of a training: `rows` of the data."""

    reader: ScreenReader
    rows: np.ndarray
    vocabulary: Vocabulary

    def codes(self, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return condition, context and batch of some rows of the data; None for all that train."""
        at = self.rows if rows is None else rows
        return {k: self.reader.codes[k][at] for k in (Key.CONDITION, Key.CONTEXT, Key.BATCH)}

    def columns(self, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return codes and metadata of some rows of the data."""
        at = self.rows if rows is None else rows
        return self.codes(rows) | {k: v[at] for k, v in self.reader.metadata.items()}

    def reference_doses(self, n_ids: int) -> Tensor:
        """Return the dose of each component at which its curve is one."""
        present = np.unique(self.codes()[Key.CONDITION])
        return reference_doses(self.vocabulary.table, present, n_ids)


def check_cells(reader: ScreenReader, train: np.ndarray, screen: Screen) -> None:
    """Raise `SchemaError` unless there is something to learn from."""
    if screen.is_perturbed and not screen.is_continuous:
        check_training_cells(reader, train, screen)
        return
    check_known_labels(reader, screen)
    if len(train) < 2:
        msg = f"There are {len(train)} training cells or samples; at least two are needed."
        raise SchemaError(msg)


def prepare(network: GroupedAutoencoder, cells: TrainingCells) -> None:
    """Tell the network which labels, components, doses and times the training cells hold."""
    fields = metadata_tensors(network, cells.columns())
    for prior in (network.identity_prior, network.technical_prior):
        prior.metadata.prepare(fields)
    table = cells.vocabulary.table
    conditions = [table.conditions[c] for c in np.unique(cells.codes()[Key.CONDITION])]
    used = {(p.name, p.kind) for c in conditions for p in c.components}
    seen = torch.tensor([pair in used for pair in table.components], dtype=torch.bool)
    network.seen.zero_()
    network.seen[: len(seen)] = seen.to(network.seen.device)
    times = [c.time for c in conditions if c.time is not None]
    operators = network.operators
    operators.reference_time.fill_(max(times, default=1.0) or 1.0)
    operators.reference_dose.copy_(cells.reference_doses(operators.n_components))
    network.n_cells.fill_(float(len(cells.rows)))


def initialise(network: GroupedAutoencoder, cells: TrainingCells, *, seed: int) -> None:
    """Start depth, linear parts, priors and operators at what regressions say."""
    device = network.profile.device
    if not network.is_continuous:
        depth = np.log(np.maximum(cells.reader.library_sizes()[cells.rows], 1.0))
        moments = [float(depth.mean()), max(float(depth.std()), 1e-3)]
        network.depth_moments.copy_(torch.tensor(moments))
    start = find_directions(network, cells, seed=seed)
    mean = torch.from_numpy(start.profile)
    n_identity, n_state, _ = network.sizes
    places = {"identity": 0, "state": n_identity, "technical": n_identity + n_state}
    with torch.no_grad():
        network.profile.copy_(mean)
        if not network.is_continuous:
            mean = mean_proportions(cells.reader, cells.rows)
        network.initialise(mean.to(device))
        for name, place in places.items():
            own = start.groups[name]
            at, genes = slice(place, place + own.encoder.shape[1]), slice(network.n_genes)
            weight = torch.from_numpy(own.encoder.T.astype(np.float32))
            weight = weight / network.encoder.linear_scale
            network.linear_encoder.weight[at, genes] = weight.to(device)
            weight = torch.from_numpy(own.decoder.astype(np.float32))
            network.linear_decoder.weight[genes, at] = weight.to(device)
        _initialise_priors(network, cells, start)
        fit = _fit_operators(network, cells, start.groups["state"].scores, start.rows)
        if fit is not None:
            network.operators.set_vectors(fit.vectors)
            network.operators.log_ec50.fill_(fit.log_ec50)
            network.operators.log_slope.fill_(fit.log_slope)


def _initialise_priors(
    network: GroupedAutoencoder, cells: TrainingCells, start: LinearDirections
) -> None:
    """Start the vectors of labels at their effects on the scores of their group."""
    fields = metadata_tensors(network, cells.columns(start.rows))
    for name in ("identity", "technical"):
        metadata, scores = network.prior_of(name).metadata, start.groups[name].scores
        n = scores.shape[1]
        specs = [(i, s) for i, s in enumerate(metadata.specs) if not s.is_numeric]
        if n == 0 or not specs:
            continue
        effects = _level_effects(scores, [fields[s.name].numpy() for _, s in specs])
        for (i, _), effect in zip(specs, effects, strict=True):
            weight = cast("Tensor", metadata.embeddings[str(i)].weight)
            weight[: len(effect), :n] = torch.from_numpy(effect).to(weight)


def _fit_operators(
    network: GroupedAutoencoder, cells: TrainingCells, state: np.ndarray, rows: np.ndarray
) -> AdditiveFit | None:
    """Fit operators to the states of cells; None without a perturbed cell."""
    codes = cells.codes(rows)
    displacement, treated = control_centred(state, codes)
    if len(treated) == 0 or state.shape[1] == 0:
        return None
    return fit_additive(
        torch.from_numpy(np.ascontiguousarray(displacement)),
        codes[Key.CONDITION][treated],
        to_tensors(cells.vocabulary.table.arrays()),
        cells.reference_doses(network.operators.n_components),
        cells.vocabulary.feature_tensors(),
    )


def with_early_divergence(stage: Stage) -> Stage:
    """Return a stage whose divergence has its weight before a short training ends.

    Draws are from priors.
    """
    plan = stage.plan
    warmup = min(plan.n_steps_kl_warmup, (plan.n_steps or 2) // 2)
    weight = 1.0 if plan.max_kl_weight is None else plan.max_kl_weight
    return replace(stage, plan=replace(plan, n_steps_kl_warmup=warmup, max_kl_weight=weight))


#: Values of expression that are looked at.
MAX_VALUES: Final = 100_000_000
#: Least slope of log1p counts against the logarithm of a proportion.
_LEAST_SLOPE: Final = 0.05
_RIDGE: Final = 1.0
#: Cells of which half is believed of what their context adds to the response to a condition.
FEW_CELLS: Final = 50
#: Groups of cells of which all directions are looked for.
MAX_GROUPS: Final = 500


class GroupDirections(NamedTuple):
    """Directions of one group of latents, and scores of cells, in standard deviations."""

    scores: np.ndarray
    encoder: np.ndarray  # from centred expression to scores, `(n_genes, k)`
    decoder: np.ndarray  # from scores to expression, `(n_genes, k)`


class LinearDirections(NamedTuple):
    """Directions of all groups, and the cells that they were found in."""

    rows: np.ndarray
    profile: np.ndarray  # mean expression; of signatures that of the controls, if any
    groups: dict[str, GroupDirections]


def find_directions(
    network: GroupedAutoencoder, cells: TrainingCells, *, seed: int
) -> LinearDirections:
    """Find the directions of each group in the training cells, or a random part of them."""
    limit, rows = max(MAX_VALUES // network.n_genes, 1), cells.rows
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    values = np.concatenate([
        network.transform(cells.reader[rows[part]]).numpy() for part in chunks(len(rows))
    ])  # fmt: skip
    codes = cells.codes(rows)
    profile = values.mean(axis=0)
    if network.is_continuous and (codes[Key.CONDITION] == 0).any():
        # Few rows: the state of a control is 0 from the start. Screens find that by themselves, and
        # do better from the middle of their cells.
        profile = values[codes[Key.CONDITION] == 0].mean(axis=0)
    values -= profile
    both = np.stack([codes[Key.CONDITION], codes[Key.CONTEXT]])
    _, place = np.unique(both, axis=1, return_inverse=True)
    config, fields = network.config, metadata_tensors(network, cells.columns(rows))
    labels = [
        fields[s.name].numpy() for s in network.technical_prior.metadata.specs if not s.is_numeric
    ]
    within = values - _group_means(values, place)[place]
    technical = _label_directions(within, labels)[: config.n_technical]
    rest = values - values @ technical.T @ technical
    state = _response_directions(rest, codes, config.n_state, seed=seed)
    rest -= rest @ state.T @ state
    n_identity = min(config.n_identity, min(rest.shape) - 1)
    identity = randomized_svd(rest, max(n_identity, 1), random_state=seed)[2]
    slope = np.ones_like(profile)
    if network.likelihood != "normal":
        slope = np.clip(-np.expm1(-profile), _LEAST_SLOPE, 1.0)
    directions = {"identity": identity, "state": state, "technical": technical}
    return LinearDirections(rows, profile, _scaled(directions, values, place, slope))


def control_centred(
    scores: np.ndarray, codes: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the displacement of treated cells from their controls, and which cells are treated.

    Controls are those of the same context and batch; without any control it is the mean of the
    context that cells are displaced from.
    """
    treated = np.flatnonzero(codes[Key.CONDITION] != 0)
    if len(treated) == 0:
        return scores[treated], treated
    if len(treated) == len(scores):
        _, context = np.unique(codes[Key.CONTEXT], return_inverse=True)
        return scores - _group_means(scores, context)[context], treated
    groups = group_controls(codes[Key.CONTEXT], codes[Key.BATCH], codes[Key.CONDITION] == 0)
    pools = [scores[groups.pool(g)].mean(axis=0) for g in range(len(groups.start))]
    centre = np.stack(pools)[groups.group]
    return (scores - centre)[treated], treated


def _response_directions(
    values: np.ndarray, codes: Mapping[str, np.ndarray], n_directions: int, *, seed: int
) -> np.ndarray:
    """Return the directions in which conditions differ from controls, in all and by context.

    What contexts differ in is a small part of it, and is drawn towards none where cells are few.
    """
    displacement, treated = control_centred(values, codes)
    if len(treated) == 0:
        return np.zeros((0, values.shape[1]), values.dtype)
    _, condition = np.unique(codes[Key.CONDITION][treated], return_inverse=True)
    both = np.stack([condition, codes[Key.CONTEXT][treated]])
    pairs, place = np.unique(both, axis=1, return_inverse=True)
    place = place.reshape(-1)
    sizes, own = np.bincount(condition), np.bincount(place)
    means = _group_means(displacement, condition)
    apart = _group_means(displacement, place) - means[pairs[0]]
    shrunk = np.sqrt(own) * own / (own + FEW_CELLS)
    weighted = np.concatenate([means * np.sqrt(sizes)[:, None], apart * shrunk[:, None]])
    if len(weighted) > MAX_GROUPS:
        return randomized_svd(weighted, n_directions, random_state=seed)[2]
    return np.linalg.svd(weighted, full_matrices=False)[2][:n_directions]


def _label_directions(values: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return orthonormal directions in which the means of labels differ, the largest first."""
    means = []
    for label in labels:
        there = label >= 0
        levels, code = np.unique(label[there], return_inverse=True)
        if len(levels) < 2:
            continue
        sizes = np.bincount(code)
        own = _group_means(values[there], code)
        own -= np.average(own, axis=0, weights=sizes)
        means.append((own * np.sqrt(sizes)[:, None], len(levels) - 1))
    if not means:
        return np.zeros((0, values.shape[1]), values.dtype)
    rank = min(sum(n for _, n in means), values.shape[1])
    return np.linalg.svd(np.concatenate([m for m, _ in means]), full_matrices=False)[2][:rank]


def _scaled(
    directions: dict[str, np.ndarray], values: np.ndarray, place: np.ndarray, slope: np.ndarray
) -> dict[str, GroupDirections]:
    """Return directions scaled so that cells vary by one within their condition and context."""
    every = np.concatenate(list(directions.values()))
    inverse = np.linalg.pinv(every)
    scores = values @ inverse
    overall = scores.std(axis=0)
    within = (scores - _group_means(scores, place)[place]).std(axis=0)
    scale = np.maximum(within, 0.1 * overall) + 1e-6
    found, first = {}, 0
    for name, own in directions.items():
        part = slice(first, first + len(own))
        first += len(own)
        found[name] = GroupDirections(
            scores[:, part] / scale[part],
            inverse[:, part] / scale[part],
            own.T * scale[part] / slope[:, None],
        )
    return found


def _group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the mean of each group, `(n_groups, k)`."""
    total = np.zeros((int(group.max()) + 1, values.shape[1]), dtype=np.float64)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(total)))
    total[:] = np.add.reduceat(values[order], starts, axis=0)
    means: np.ndarray = (total / np.bincount(group)[:, None]).astype(values.dtype)
    return means


def _level_effects(scores: np.ndarray, labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the effect of each level of each column on scores, by ridge regression."""
    blocks = [np.equal.outer(label, np.arange(int(label.max()) + 1)) for label in labels]
    design = np.concatenate(blocks, axis=1).astype(np.float64)
    gram = design.T @ design + _RIDGE * np.eye(design.shape[1])
    effects = np.linalg.solve(gram, design.T @ (scores - scores.mean(axis=0)))
    return np.split(effects, np.cumsum([b.shape[1] for b in blocks])[:-1])


def finish(
    module: CausalModule, cells: TrainingCells, *, seed: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Fit heads and unseen operators; return which latents are active, and identity's spread."""
    network, rows, device = module.representation, cells.rows, module.representation.profile.device
    latents = encode_cells(network, lambda i: cells.reader[rows[i]], len(rows), device)
    _fit_heads(module, latents, cells, seed=seed)
    groups = network.groups(latents[0])
    _fill_unseen_operators(network, cells, groups.state.numpy())
    spread = _identity_spread(groups.identity.double().numpy(), cells.codes()[Key.CONTEXT])
    return _active_units(network, latents[0]), spread


#: A latent is active if its mean varies by more than this between cells (Burda et al. 2016).
ACTIVE_VARIANCE: Final = 0.01

N_STEPS: Final = 400
LEARNING_RATE: Final = 5e-3
WEIGHT_DECAY: Final = 1e-2
BATCH_SIZE: Final = 1_024


def _fit_heads(
    module: CausalModule,
    latents: tuple[Tensor, Tensor],
    cells: TrainingCells,
    *,
    seed: int,
) -> None:
    """Fit the heads to draws of the latents, mean and log variance, of the training cells.

    While the latents were learned, the heads followed them; with few cells they are left behind.
    """
    network, heads = module.representation, module.heads
    if not heads:
        return
    heads.load_state_dict(network.heads.state_dict())
    device = network.profile.device
    mean, log_variance = latents
    fields = metadata_tensors(network, cells.columns())
    condition = torch.from_numpy(cells.codes()[Key.CONDITION])
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, N_STEPS)
    for _ in range(N_STEPS):
        rows = torch.randint(len(mean), (min(BATCH_SIZE, len(mean)),), generator=random)
        noise = torch.randn(len(rows), mean.shape[1], generator=random)
        draw = mean[rows] + (0.5 * log_variance[rows]).exp() * noise
        groups = network.learned_groups(draw.to(device))
        own = {name: values[rows].to(device) for name, values in fields.items()}
        loss = heads_loss(network, heads, groups, own, condition[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _fill_unseen_operators(
    network: GroupedAutoencoder, cells: TrainingCells, state: np.ndarray
) -> None:
    """Give operators to components without training cells, from those that have some."""
    fit = _fit_operators(network, cells, state, cells.rows)
    if fit is None or bool(network.seen.all()):
        return
    seen, operators = network.seen.cpu(), network.operators
    with torch.no_grad():
        learned = operators.vectors.cpu()
        # Of the cells that respond: the regression is one of all.
        size = fit.vectors[seen].square().sum().clamp_min(1e-9)
        factor = ((learned[seen] * fit.vectors[seen]).sum() / size).clamp(0.0, 3.0)
        operators.set_vectors(torch.where(seen[:, None], learned, factor * fit.vectors))
        for curve in (operators.log_ec50, operators.log_slope, operators.log_tau):
            curve[~network.seen] = curve[network.seen].mean()


def latent_names(sizes: tuple[int, int, int]) -> list[str]:
    """Return the names of latents: `identity_0`, ..., the depth first of the technical ones."""
    groups = ("identity", "state", "technical")
    names = [f"{group}_{i}" for group, n in zip(groups, sizes, strict=True) for i in range(n)]
    first = sizes[0] + sizes[1]
    return [*names[:first], "depth", *names[first:-1]]


def _active_units(network: GroupedAutoencoder, latent: Tensor) -> pd.DataFrame:
    """Return the group of each latent, and whether its mean varies between cells."""
    names = latent_names(network.sizes)
    groups = ["technical" if n == "depth" else n.rpartition("_")[0] for n in names]
    active = latent.var(0).numpy() > ACTIVE_VARIANCE
    return pd.DataFrame({"group": groups, "active": active}, index=names)


def _identity_spread(identity: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
    """Return the covariance of identity within contexts and between them, and their centre."""
    _, context = np.unique(context, return_inverse=True)
    size = np.bincount(context)
    total = np.zeros((len(size), identity.shape[1]))
    np.add.at(total, context, identity)
    means = total / size[:, None]
    away = identity - means[context]
    centre = means.mean(axis=0)
    n_contexts = len(size)
    within = away.T @ away / max(len(identity) - n_contexts, 1)
    apart = means - centre
    # Of few contexts only variances are known.
    between = np.diag(apart.T @ apart).copy() / max(n_contexts - 1, 1)
    between = between if n_contexts > 1 else np.diag(within).copy()
    return {"within": within, "between": np.diag(between + 1e-6), "centre": centre}
