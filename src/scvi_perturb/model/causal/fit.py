"""Initialise and train `CausalPerturbVAE`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY, LIBRARY_KEY, X_KEY
from scvi_perturb.data.matching import group_controls
from scvi_perturb.model.base.latents import chunks, encode_cells
from scvi_perturb.model.base.setup import reference_doses, to_tensors
from scvi_perturb.model.base.training import (
    fit_additive,
    mean_proportions,
    n_batches,
    representation_stage,
)
from scvi_perturb.module.causal import CausalDesign, heads_loss
from scvi_perturb.nn.metadata import MetadataSpec
from scvi_perturb.train.runner import fit_stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from scvi_perturb._typing import Batch
    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.model.base.setup import Screen, Vocabulary
    from scvi_perturb.model.base.training import AdditiveFit, CellSplit
    from scvi_perturb.model.causal.draw import CausalTraining
    from scvi_perturb.module.causal import CausalModule, GroupedAutoencoder
    from scvi_perturb.nn.metadata import GroupPrior
    from scvi_perturb.train.plan import TrainConfig

__all__ = [
    "Anchor",
    "CausalFit",
    "Start",
    "control_centred",
    "find_start",
    "fit_heads",
    "labels_of",
    "make_design",
    "reference_factors",
]


_LEAST, _MOST = 0.2, 5.0
#: Variance of a gene's ratio below which nothing is gained by knowing it better.
_FLOOR: Final = 1e-4


@dataclass(slots=True)
class Anchor:
    """Sums over the reference cells of one context and batch, a gene each.

    Attributes
    ----------
    observed, expected
        Counts, and what the network expects of them.
    squared
        Sum over cells of the squared differences of the two.
    n_cells
        Number of cells.
    """

    observed: np.ndarray
    expected: np.ndarray
    squared: np.ndarray
    n_cells: int = 0

    @classmethod
    def of(cls, n_genes: int) -> Anchor:
        """Return an anchor of no cell."""
        return cls(np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes))

    def add(self, counts: np.ndarray, expected: np.ndarray) -> None:
        """Add cells, `(n, n_genes)` each."""
        self.observed += counts.sum(axis=0)
        self.expected += expected.sum(axis=0)
        self.squared += ((counts - expected) ** 2).sum(axis=0)
        self.n_cells += len(counts)

    def factors(self) -> np.ndarray:
        """Return the factor of each gene, `(n_genes,)`.

        Ratios of observed to expected sums are drawn towards one by the variance that their scatter
        has beyond that of chance (James-Stein): of a single cell nothing is believed.
        """
        if self.n_cells < 2:
            return np.ones_like(self.observed)
        expected = np.maximum(self.expected, 1e-9)
        ratio = self.observed / expected
        chance = self.squared / expected**2 * (self.n_cells / (self.n_cells - 1)) + _FLOOR
        weight = 1.0 / chance
        scatter = float((weight * ((ratio - 1.0) ** 2 - chance)).sum() / weight.sum())
        if scatter <= 0:
            return np.ones_like(ratio)
        factors: np.ndarray = 1.0 + (ratio - 1.0) * scatter / (scatter + chance)
        return np.clip(factors, _LEAST, _MOST)


def reference_factors(
    cells: Iterable[tuple[np.ndarray, Batch, torch.Tensor]], n_genes: int
) -> dict[int, np.ndarray]:
    """Return the factors of each group of reference cells.

    Parameters
    ----------
    cells
        Group, counts and library, and expected proportions under control of some cells in turn.
    n_genes
        Number of genes.
    """
    anchors: dict[int, Anchor] = {}
    for group, batch, share in cells:
        counts = batch[X_KEY].numpy()
        expected = (share.cpu() * batch[LIBRARY_KEY][:, None].cpu()).numpy()
        for own in np.unique(group):
            at = group == own
            anchors.setdefault(int(own), Anchor.of(n_genes)).add(counts[at], expected[at])
    return {own: anchor.factors() for own, anchor in anchors.items()}


def make_design(screen: Screen, vocabulary: Vocabulary) -> CausalDesign:
    """Return the design of a screen."""
    table = screen.table
    contexts, context_levels = _columns_of(screen.context_columns, screen.contexts)
    batch = () if screen.batch_column is None else (screen.batch_column,)
    batches, batch_levels = _columns_of(batch, screen.batches)
    further = {group: [] for group in ("identity", "technical")}  # type: dict[str, list[MetadataSpec]]
    for column in screen.metadata:
        n_levels = 0 if column.levels is None else len(column.levels)
        further[column.group].append(MetadataSpec(column.name, n_levels))
    genes = {gene: i for i, gene in enumerate(screen.genes)}
    kinds = {kind: i for i, kind in enumerate(sorted({kind for _, kind in table.components}))}
    pairs = {
        pair
        for condition in table.conditions
        for pair in combinations(
            sorted(table.component_index(p.name, p.kind) for p in condition.components), 2
        )
    }
    labels, label = labels_of(screen)
    return CausalDesign(
        n_genes=len(screen.genes),
        conditions=to_tensors(table.arrays()),
        identity=(*contexts, *further["identity"]),
        technical=(*batches, *further["technical"]),
        context_levels=context_levels,
        batch_levels=batch_levels,
        n_components=len(vocabulary.names),
        pairs=tuple(sorted(pairs)),
        label=torch.from_numpy(label),
        n_labels=len(labels),
        target=torch.tensor([genes.get(name, -1) for name in vocabulary.names], dtype=torch.long),
        kind=torch.tensor([kinds[kind] for _, kind in table.components], dtype=torch.long),
        partial_panel=screen.library_key is not None,
        real_values=screen.real_values,
    )


def labels_of(screen: Screen) -> tuple[list[str], np.ndarray]:
    """Return the perturbations of a screen, at whatever dose and time, and that of each code."""
    names = screen.table.frame()["perturbation"].astype(str)
    labels, label = np.unique(names.to_numpy(), return_inverse=True)
    return labels.tolist(), label.astype(np.int64)


def _columns_of(
    names: tuple[str, ...], rows: tuple[tuple[str, ...], ...]
) -> tuple[tuple[MetadataSpec, ...], torch.Tensor]:
    """Return one column of metadata each, and the level of each code, `(n_codes, n_columns)`."""
    levels = [sorted({row[i] for row in rows}) for i in range(len(names))]
    specs = tuple(MetadataSpec(n, len(own)) for n, own in zip(names, levels, strict=True))
    places = [[own.index(row[i]) for i, own in enumerate(levels)] for row in rows]
    return specs, torch.tensor(places, dtype=torch.long).reshape(len(rows), len(names))


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


#: Values of expression that are looked at.
MAX_VALUES: Final = 100_000_000
#: Least slope of log1p counts against the logarithm of a proportion.
_LEAST_SLOPE: Final = 0.05
_RIDGE: Final = 1.0
#: Cells of which half is believed of what their context adds to the response to a condition.
FEW_CELLS: Final = 50
#: Groups of cells of which all directions are looked for.
MAX_GROUPS: Final = 500

Floats = np.ndarray


class Start(NamedTuple):
    """Directions, and where cells lie along them.

    Attributes
    ----------
    rows
        Cells that were looked at, `(n,)`.
    profile
        Mean of their expression, `(n_genes,)`; of signatures that of the controls, if any.
    scores
        Of the cells by group, `(n, k)` each; in standard deviations.
    encoder, decoder
        From centred expression to scores, and back, `(n_genes, k)` each by group.
    """

    rows: np.ndarray
    profile: Floats
    scores: dict[str, Floats]
    encoder: dict[str, Floats]
    decoder: dict[str, Floats]


def find_start(
    module: GroupedAutoencoder, reader: ScreenReader, train: np.ndarray, *, seed: int
) -> Start:
    """Find the directions of each group in the training cells, or a random part of them."""
    limit = max(MAX_VALUES // module.n_genes, 1)
    random = np.random.default_rng(seed)
    rows = train if len(train) <= limit else np.sort(random.choice(train, limit, replace=False))
    values = np.concatenate([
        module.transform(reader[rows[part]]).numpy() for part in chunks(len(rows))
    ])  # fmt: skip
    codes = {key: reader.codes[key][rows] for key in (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)}
    profile = values.mean(axis=0)
    if module.real_values and (codes[CONDITION_KEY] == 0).any():
        # Few rows: the state of a control is 0 from the start. Screens find that by themselves, and
        # do better from the middle of their cells.
        profile = values[codes[CONDITION_KEY] == 0].mean(axis=0)
    values -= profile
    _, place = np.unique(
        np.stack([codes[CONDITION_KEY], codes[CONTEXT_KEY]]), axis=1, return_inverse=True
    )
    config = module.config
    technical = _technical(module, reader, rows, values, place)[: config.n_technical]
    rest = values - values @ technical.T @ technical
    state = _state(rest, codes, config.n_state, seed=seed)
    rest -= rest @ state.T @ state
    n_identity = min(config.n_identity, min(rest.shape) - 1)
    identity = randomized_svd(rest, max(n_identity, 1), random_state=seed)[2]
    return _scaled(
        {"identity": identity, "state": state, "technical": technical},
        values,
        (rows, profile, place),
        counts=module.likelihood != "normal",
    )


def control_centred(scores: Floats, codes: dict[str, np.ndarray]) -> tuple[Floats, np.ndarray]:
    """Return the displacement of treated cells from their controls, and which cells are treated.

    Controls are those of the same context and batch; without any control it is the mean of the
    context that cells are displaced from.
    """
    treated = np.flatnonzero(codes[CONDITION_KEY] != 0)
    if len(treated) == 0:
        return scores[treated], treated
    if len(treated) == len(scores):
        _, context = np.unique(codes[CONTEXT_KEY], return_inverse=True)
        return scores - _group_means(scores, context)[context], treated
    groups = group_controls(codes[CONTEXT_KEY], codes[BATCH_KEY], codes[CONDITION_KEY] == 0)
    pools = (scores[groups.pool(g)].mean(axis=0) for g in range(len(groups.start)))
    centre = np.stack(list(pools))[groups.group]
    return (scores - centre)[treated], treated


def _technical(
    module: GroupedAutoencoder,
    reader: ScreenReader,
    rows: np.ndarray,
    values: Floats,
    place: np.ndarray,
) -> Floats:
    """Return the directions in which labels of technical metadata differ, within conditions."""
    fields = module.fields({k: torch.from_numpy(v[rows]) for k, v in _columns(reader).items()})
    labels = [
        fields[spec.name].numpy()
        for spec in module.technical_prior.metadata.specs
        if not spec.is_numeric
    ]
    return _directions(values - _group_means(values, place)[place], labels)


def _columns(reader: ScreenReader) -> dict[str, np.ndarray]:
    return {**reader.codes, **reader.metadata}


def _state(values: Floats, codes: dict[str, np.ndarray], n_directions: int, *, seed: int) -> Floats:
    """Return the directions in which conditions differ from controls, in all and by context.

    What contexts differ in is a small part of it, and is drawn towards none where cells are few.
    """
    moved, treated = control_centred(values, codes)
    if len(treated) == 0:
        return np.zeros((0, values.shape[1]), values.dtype)
    _, condition = np.unique(codes[CONDITION_KEY][treated], return_inverse=True)
    both = np.stack([condition, codes[CONTEXT_KEY][treated]])
    pairs, place = np.unique(both, axis=1, return_inverse=True)
    place = place.reshape(-1)
    sizes, own = np.bincount(condition), np.bincount(place)
    means = _group_means(moved, condition)
    apart = _group_means(moved, place) - means[pairs[0]]
    shrunk = np.sqrt(own) * own / (own + FEW_CELLS)
    weighted = np.concatenate([means * np.sqrt(sizes)[:, None], apart * shrunk[:, None]])
    if len(weighted) > MAX_GROUPS:
        return randomized_svd(weighted, n_directions, random_state=seed)[2]
    return np.linalg.svd(weighted, full_matrices=False)[2][:n_directions]


def _directions(values: Floats, labels: Sequence[np.ndarray]) -> Floats:
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
    directions: dict[str, Floats],
    values: Floats,
    cells: tuple[np.ndarray, Floats, np.ndarray],
    *,
    counts: bool,
) -> Start:
    """Return directions scaled so that cells vary by one within their condition and context."""
    rows, profile, place = cells
    every = np.concatenate(list(directions.values()))
    inverse = np.linalg.pinv(every)
    scores = values @ inverse
    overall = scores.std(axis=0)
    within = (scores - _group_means(scores, place)[place]).std(axis=0)
    scale = np.maximum(within, 0.1 * overall) + 1e-6
    slope = np.clip(-np.expm1(-profile), _LEAST_SLOPE, 1.0)[:, None] if counts else 1.0
    found: dict[str, tuple[Floats, Floats, Floats]] = {}
    start = 0
    for name, own in directions.items():
        part = slice(start, start + len(own))
        start += len(own)
        found[name] = (
            scores[:, part] / scale[part],
            inverse[:, part] / scale[part],
            own.T * scale[part] / slope,
        )
    by_group = ({name: parts[i] for name, parts in found.items()} for i in range(3))
    return Start(rows, profile, *by_group)


def _group_means(values: Floats, group: np.ndarray) -> Floats:
    """Return the mean of each group, `(n_groups, k)`."""
    total = np.zeros((int(group.max()) + 1, values.shape[1]), dtype=np.float64)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(total)))
    total[:] = np.add.reduceat(values[order], starts, axis=0)
    means: Floats = (total / np.bincount(group)[:, None]).astype(values.dtype)
    return means


def level_effects(scores: Floats, labels: Sequence[np.ndarray]) -> list[Floats]:
    """Return the effect of each level of each column on scores, by ridge regression.

    Parameters
    ----------
    scores
        `(n, k)`.
    labels
        Codes of each column, `(n,)`; -1 where missing.

    Returns
    -------
    One array a column, `(n_levels, k)`.
    """
    blocks = [np.equal.outer(label, np.arange(int(label.max()) + 1)) for label in labels]
    design = np.concatenate(blocks, axis=1).astype(np.float64)
    gram = design.T @ design + _RIDGE * np.eye(design.shape[1])
    effects = np.linalg.solve(gram, design.T @ (scores - scores.mean(axis=0)))
    return np.split(effects, np.cumsum([b.shape[1] for b in blocks])[:-1])


#: A latent is active if its mean varies by more than this between cells (Burda et al. 2016).
ACTIVE = 0.01


@dataclass(slots=True)
class CausalFit:
    """What the steps of one training share.

    Attributes
    ----------
    model, reader, parts, config
        The model, its cells, which of them to use, and how.
    trainer_kwargs
        For the Trainer.
    folder
        Where the state of the run is written, or None.
    """

    model: CausalTraining
    reader: ScreenReader
    parts: CellSplit
    config: TrainConfig
    trainer_kwargs: dict[str, Any]
    folder: Path | None

    @property
    def module(self) -> GroupedAutoencoder:
        """The module to train."""
        return self.model.module.representation

    def prepare(self, *, seed: int) -> None:
        """Tell the module what training holds; the first time, find where it starts."""
        module, train, device = self.module, self.parts.train, self.model._device()
        columns = {**self.reader.codes, **self.reader.metadata}
        fields = module.fields(
            {k: torch.from_numpy(v[train]).to(device) for k, v in columns.items()}
        )
        for prior in (module.identity_prior, module.technical_prior):
            prior.metadata.prepare(fields)
        codes = self.reader.codes[CONDITION_KEY]
        table = self.model._screen.table
        present = np.unique(codes[train])
        used = {(p.name, p.kind) for c in present for p in table.conditions[c].components}
        seen = torch.tensor([pair in used for pair in table.components], dtype=torch.bool)
        module.seen.zero_()
        module.seen[: len(seen)] = seen.to(device)
        times = [t for c in present if (t := table.conditions[c].time) is not None]
        module.operators.reference_time.fill_(max(times, default=1.0) or 1.0)
        module.operators.reference_dose.copy_(self._doses().to(device))
        module.n_cells.fill_(float(len(train)))
        if self.model.is_trained_:
            return
        if not module.real_values:
            depth = np.log(np.maximum(self.reader.library_sizes()[train], 1.0))
            moments = [float(depth.mean()), max(float(depth.std()), 1e-3)]
            module.depth_moments.copy_(torch.tensor(moments))
        self._start(seed=seed)

    def optimise(self, max_epochs: int | None, *, batch_size: int, seed: int) -> None:
        """Train on counts."""
        n_in_epoch = n_batches(len(self.parts.train), batch_size, self.trainer_kwargs)
        stage = representation_stage(
            self.module,
            self.reader,
            self.parts,
            self.config,
            max_epochs=max_epochs,
            batches=(batch_size, n_in_epoch),
            seed=seed,
        )
        # Draws are from priors: the divergence has its weight before a short training ends.
        plan = stage.plan
        warmup = min(plan.n_steps_kl_warmup, (plan.n_steps or 2) // 2)
        weight = 1.0 if plan.max_kl_weight is None else plan.max_kl_weight
        plan = replace(plan, n_steps_kl_warmup=warmup, max_kl_weight=weight)
        stage = replace(stage, plan=plan)
        fit_stage(
            self.model,
            stage,
            trainer_kwargs=self.trainer_kwargs,
            checkpoint_dir=self.folder,
            every_n_epochs=self.config.checkpoint_every_n_epochs,
        )
        self.model.module.eval()

    def finish(self, *, seed: int) -> None:
        """Look at the latents of the training cells; give operators to what was not seen."""
        module, train = self.module, self.parts.train
        mean, log_variance = encode_cells(
            module, lambda i: self.reader[train[i]], len(train), self.model._device()
        )
        self.model._remember_activity(mean.var(0).numpy() > ACTIVE)
        codes = {k: self.reader.codes[k][train] for k in (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)}
        self.model._remember_spread(mean, codes)
        columns = {**codes, **{k: v[train] for k, v in self.reader.metadata.items()}}
        device = self.model._device()
        fields = module.fields({k: torch.from_numpy(v).to(device) for k, v in columns.items()})
        fit_heads(
            self.model.module,
            (mean, log_variance),
            {k: v.cpu() for k, v in fields.items()},
            torch.from_numpy(codes[CONDITION_KEY]),
            seed=seed,
        )
        fit = self._operators(module.groups(mean).state.numpy(), codes)
        if fit is None or bool(module.seen.all()):
            return
        seen = module.seen.cpu()
        with torch.no_grad():
            learned = module.operators.vectors.cpu()
            # Of the cells that respond: the regression is one of all.
            size = fit.vectors[seen].square().sum().clamp_min(1e-9)
            factor = ((learned[seen] * fit.vectors[seen]).sum() / size).clamp(0.0, 3.0)
            filled = torch.where(seen[:, None], learned, factor * fit.vectors)
            module.operators.set_vectors(filled)
            for name in ("log_ec50", "log_slope", "log_tau"):
                curve = getattr(module.operators, name)
                curve[~module.seen] = curve[module.seen].mean()

    def _start(self, *, seed: int) -> None:
        """Start the module's linear parts, priors and operators at what a regression says."""
        start = find_start(self.module, self.reader, self.parts.train, seed=seed)
        module, codes = self.module, {k: v[start.rows] for k, v in self.reader.codes.items()}
        device = self.model._device()
        profile = torch.from_numpy(start.profile)
        with torch.no_grad():
            module.profile.copy_(profile)
            module.initialise(self._mean_profile(profile).to(device))
            first = dict(zip(("identity", "state", "technical"), _places(module), strict=True))
            for name, place in first.items():
                encoder, decoder = start.encoder[name], start.decoder[name]
                own = slice(place, place + encoder.shape[1])
                n_genes = module.n_genes
                weight = torch.from_numpy(encoder.T.astype(np.float32))
                weight = weight / module.encoder.linear_scale
                module.linear_encoder.weight[own, :n_genes] = weight.to(device)
                weight = torch.from_numpy(decoder.astype(np.float32))
                module.linear_decoder.weight[:n_genes, own] = weight.to(device)
            self._start_priors(start)
            fit = self._operators(start.scores["state"], codes)
            if fit is not None:
                module.operators.set_vectors(fit.vectors)
                module.operators.log_ec50.fill_(fit.log_ec50)
                module.operators.log_slope.fill_(fit.log_slope)

    def _start_priors(self, start: Start) -> None:
        """Start the vectors of labels at their effects on the scores of their group."""
        module, columns = self.module, {**self.reader.codes, **self.reader.metadata}
        device = self.model._device()
        rows = {k: torch.from_numpy(v[start.rows]).to(device) for k, v in columns.items()}
        fields = {k: v.cpu() for k, v in module.fields(rows).items()}
        groups: dict[str, GroupPrior] = {
            "identity": module.identity_prior,
            "technical": module.technical_prior,
        }
        for name, prior in groups.items():
            scores = start.scores[name]
            n = scores.shape[1]
            specs = [(i, s) for i, s in enumerate(prior.metadata.specs) if not s.is_numeric]
            if n == 0 or not specs:
                continue
            effects = level_effects(scores, [fields[s.name].numpy() for _, s in specs])
            for (i, _), effect in zip(specs, effects, strict=True):
                weight = cast("torch.Tensor", prior.metadata.embeddings[str(i)].weight)
                weight[: len(effect), :n] = torch.from_numpy(effect).to(weight)

    def _operators(self, state: np.ndarray, codes: dict[str, np.ndarray]) -> AdditiveFit | None:
        """Fit operators to the states of cells; None without a perturbed cell."""
        moved, treated = control_centred(state, codes)
        if len(treated) == 0 or state.shape[1] == 0:
            return None
        return fit_additive(
            torch.from_numpy(np.ascontiguousarray(moved)),
            codes[CONDITION_KEY][treated],
            to_tensors(self.model._screen.table.arrays()),
            self._doses(),
            self.model._vocabulary.feature_tensors(),
        )

    def _doses(self) -> torch.Tensor:
        present = np.unique(self.reader.codes[CONDITION_KEY][self.parts.train])
        n_ids = self.module.operators.n_components
        return reference_doses(self.model._screen.table, present, n_ids)

    def _mean_profile(self, profile: torch.Tensor) -> torch.Tensor:
        """Return the mean share of each gene of the library; of real values their mean."""
        if self.module.real_values:
            return profile
        return mean_proportions(self.reader, self.parts.train)


def _places(module: GroupedAutoencoder) -> tuple[int, int, int]:
    """Return where each group begins among what is encoded."""
    n_identity, n_state, _ = module.sizes
    return 0, n_identity, n_identity + n_state
