"""Where the groups of latents start: at what a regression of the training cells explains.

Which directions of expression belong to which group is not identified by the evidence bound alone,
and found late or wrongly from a random start. So the linear parts of the encoder and the decoder
start with the directions in which batches differ (technical), those in which conditions differ from
their controls (state), and the principal components of the rest (identity).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.data import group_controls
from scvi_perturb.model._latents import chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.module import GroupedAutoencoder

__all__ = ["Start", "control_centred", "find_start"]

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
