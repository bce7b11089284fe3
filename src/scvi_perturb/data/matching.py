"""Group control cells by context and batch, and match treated cells to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scvi_perturb._checks import check_choice
from scvi_perturb._core import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

#: What a group's controls share with its cells; a level is a position in this tuple.
LEVELS: Final = ("context and batch", "context", "nothing")


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """Cells grouped by context and batch, with the control cells of each group.

    `group`: `(n_cells,)` group of each cell. `level`: `(n_groups,)` position in `LEVELS`: how
    closely the group's controls match. `controls`: `(n_controls,)` positions of all control cells,
    ordered so that the controls of a group are `controls[start[group]:stop[group]]`. `start`,
    `stop`: `(n_groups,)`.
    """

    group: NDArray[np.int64]
    level: NDArray[np.int64]
    controls: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def pool(self, group: int) -> NDArray[np.int64]:
        """Return the positions of the control cells of a group."""
        return self.controls[self.start[group] : self.stop[group]]


def group_controls(
    context: ArrayLike, batch: ArrayLike | None, is_control: ArrayLike
) -> ControlGroups:
    """Find the control cells of each cell.

    They share the cell's context and batch; where there are none, its context; where there are
    none either, they are all controls. `level` tells which.

    `context`: `(n_cells,)` or, for several columns, `(n_cells, n_columns)`: codes or labels.
    `batch`: `(n_cells,)` codes or labels, or None for a single batch. `is_control`: `(n_cells,)` of
    bool. Raises `SchemaError`: If lengths differ or there is no control cell.
    """
    control = np.asarray(is_control, dtype=bool)
    if not control.any():
        msg = (
            f"None of {len(control)} cells is a control; expected at least one. Name the control "
            "label with `control=`, or add control cells."
        )
        raise SchemaError(msg)
    contexts = _as_codes(context, len(control), "context")
    batches = _as_codes(np.zeros(len(control)) if batch is None else batch, len(control), "batch")
    pair = contexts * (batches.max() + 1) + batches
    distinct, group = np.unique(pair, return_inverse=True)
    controls = np.flatnonzero(control)
    controls = controls[np.argsort(pair[controls], kind="stable")]
    bounds = np.stack(
        [
            _interval(pair[controls], distinct),
            _interval(contexts[controls], distinct // (batches.max() + 1)),
            np.broadcast_to([[0], [len(controls)]], (2, len(distinct))),
        ]
    )
    level = (bounds[:, 1] > bounds[:, 0]).argmax(axis=0)
    start, stop = bounds[level, :, np.arange(len(distinct))].T
    return ControlGroups(group, level, controls, start, stop)


def effects_of_batches(
    condition: NDArray[np.int64], context: NDArray[np.int64], batch: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Return the conditions, with their context, that share no batch with controls there.

    What they do cannot be told from what their batches are. `condition`: `(n_cells,)` codes, 0 is
    the control. `context`, `batch`: `(n_cells,)` codes. Contexts without controls are left out.
    """
    control = condition == 0
    if not control.any() or control.all():
        return []
    groups = group_controls(context, batch, control)
    level = groups.level[groups.group[~control]]
    pairs = np.stack([condition[~control], context[~control]], axis=1)
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    closest = np.full(len(distinct), len(LEVELS))
    np.minimum.at(closest, which.ravel(), level)
    return [(int(c), int(x)) for c, x in distinct[closest == 1]]


def tell_batch_effects(named: Sequence[str]) -> str:
    """Return the message about effects that `effects_of_batches` found, named for the user."""
    some = ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")
    return (
        f"{len(named)} effects cannot be told from the batch: no control cell of the context is in "
        f"any batch of {some}. Add controls of these batches, or do not read what is predicted "
        "there as the effect of the perturbation."
    )


def _as_codes(values: ArrayLike, n_cells: int, name: str) -> NDArray[np.int64]:
    """Return one dense code a cell for labels in one or several columns."""
    columns = np.asarray(values)
    if columns.shape[:1] != (n_cells,):
        msg = f"{name} has shape {columns.shape}; expected {n_cells} rows, as is_control has."
        raise SchemaError(msg)
    codes = np.zeros(n_cells, np.int64)
    for column in columns.reshape(n_cells, -1).T:
        own, labels = pd.factorize(column, use_na_sentinel=False)
        codes, _ = pd.factorize(codes * len(labels) + own)
    return codes.astype(np.int64)


def _interval(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each value begins and ends in an ordered array, `(2, n_values)`."""
    return np.stack([np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")])


#: Maps latents of targets and of sources, and a generator, to the source of each target.
Coupling = Callable[
    ["NDArray[np.floating]", "NDArray[np.floating]", np.random.Generator], "NDArray[np.int64]"
]

#: The cells of a small group are repeated up to this many rows, so that more controls are in reach.
_N_REPLICATED = 64


def match_controls(
    groups: ControlGroups,
    *,
    cells: ArrayLike | None = None,
    method: Literal["random", "ot"] | Coupling = "random",
    latent: NDArray[np.floating] | None = None,
    condition: ArrayLike | None = None,
    max_size: int = 1024,
    share: tuple[int, int] = (0, 1),
    seed: int | None = None,
) -> NDArray[np.int64]:
    """Pair each cell with one control cell of its group.

    `groups`: From `group_controls`. `cells`: Positions of the cells to pair; None pairs all,
    controls included: they get another control of their group if there is one (a null pair).
    `method`: "random" draws uniformly. "ot" solves exact optimal transport (squared Euclidean cost,
    equal weights) from the cells of each condition of a group to a random sample of its controls;
    both sides are used evenly, so that the controls' distribution is kept. Or a function `(targets,
    sources, rng) -> sources of the targets` of latents, called for each group as "ot" is. `latent`:
    `(n_cells, n_dimensions)`, needed for all but "random". `condition`: `(n_cells,)` codes. Unless
    drawn at "random", each condition is transported on its own; None takes all cells of a group
    together. `max_size`: Largest transport problem: larger groups are cut at random into chunks of
    this size. `share`: Which share of the transport problems to solve, and of how many; cells of
    the others are -1. `seed`: Seed of the draws. Returns `(len(cells),)` positions of control
    cells, int64. Raises `ValueError`: If the method is not known, or `latent` is missing or does
    not fit.
    """
    if not callable(method):
        check_choice("method", method, ("random", "ot"))
    rng = np.random.default_rng(seed)
    n_cells = len(groups.group)
    chosen = np.arange(n_cells) if cells is None else np.asarray(cells, dtype=np.int64)
    if method == "random":
        return _match_random(groups, chosen, rng)
    if latent is None or len(latent) != n_cells:
        found = "None" if latent is None else f"{len(latent)} rows"
        msg = (
            f"method={method!r} needs a latent array of {n_cells} rows, one a cell; found {found}."
        )
        raise ValueError(msg)
    matched = _match_random(groups, chosen, rng)  # of a cell alone, its transport
    for i, (group, members) in enumerate(_chunks(groups, chosen, condition, max_size, rng)):
        (random,) = rng.spawn(1)  # the same draws, whoever solves the others
        if i % share[1] != share[0]:
            matched[members] = -1
            continue
        own, pool = chosen[members], groups.pool(group)
        if callable(method):
            sources = _even_sample(pool, min(len(pool), max_size), random)
            matched[members] = sources[method(latent[own], latent[sources], random)]
        elif len(own) > 1:
            matched[members] = _transport(latent, own, pool, random)
    return matched


def _match_random(
    groups: ControlGroups, cells: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw one control each; a control that would meet itself takes another of its pool."""
    group = groups.group[cells]
    start, size = groups.start[group], (groups.stop - groups.start)[group]
    drawn = (rng.random(len(cells)) * size).astype(np.int64)
    itself = (groups.controls[start + drawn] == cells) & (size > 1)
    others = (rng.random(int(itself.sum())) * (size[itself] - 1)).astype(np.int64)
    drawn[itself] = (drawn[itself] + 1 + others) % size[itself]
    return groups.controls[start + drawn]


def _chunks(
    groups: ControlGroups,
    cells: NDArray[np.int64],
    condition: ArrayLike | None,
    max_size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield a group and positions in `cells` of at most `max_size` of its cells of a condition."""
    group = groups.group[cells]
    parts = np.zeros(len(cells)) if condition is None else np.asarray(condition)[cells]
    together = _as_codes(np.stack([group, pd.factorize(parts)[0]], axis=1), len(cells), "condition")
    order = rng.permutation(len(cells))
    order = order[np.argsort(together[order], kind="stable")]
    for members in np.split(order, np.flatnonzero(np.diff(together[order])) + 1):
        for chunk in np.array_split(members, -(-len(members) // max_size)):
            if len(chunk):
                yield int(group[chunk[0]]), chunk


def _transport(
    latent: NDArray[np.floating],
    cells: NDArray[np.int64],
    pool: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Transport cells to as many sampled controls, and return the control of each cell."""
    n = len(cells)
    copies = max(1, min(_N_REPLICATED, len(pool)) // n)
    sample = _even_sample(pool, copies * n, rng)
    cost = cdist(latent[sample], latent[cells], "sqeuclidean")
    if len(pool) > 1:  # a control is not its own pair, unless nothing else is left
        cost[sample[:, None] == cells] = 1e3 * (1 + cost.max())
    _, copy = linear_sum_assignment(np.repeat(cost, copies, axis=1))
    options = sample[np.argsort(copy)].reshape(n, copies)
    pick = rng.integers(copies, size=n)
    pick = (pick + (options[np.arange(n), pick] == cells)) % copies
    return options[np.arange(n), pick]


def _even_sample(pool: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `size` controls, each as often as any other, give or take one."""
    rounds, rest = divmod(size, len(pool))
    drawn = rng.choice(pool, rest, replace=False, shuffle=False)
    return np.concatenate([np.tile(pool, rounds), drawn]) if rounds else drawn
