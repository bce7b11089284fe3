"""Split a screen by what is held out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, drawn_seed
from scvi_perturb.data.condition import as_label, default_keys
from scvi_perturb.data.fields import data_hash, read_annotation
from scvi_perturb.data.split.record import (
    Split,
    SplitOptions,
    describe,
    identity,
    supersets,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.fields import Annotation

T = TypeVar("T")
Names = tuple[str, ...]
#: Which groups are held out, `(n_groups,)`, and what is said of each in the record.
HeldOut: TypeAlias = "tuple[NDArray[np.bool_], pd.DataFrame]"

#: Stands for components that are not measured alone.
_UNMEASURED = ""


class _TwoColouring:
    """Names in two colours, hidden and seen: the two of a pair always differ (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, tuple[str, bool]] = {}

    def root(self, name: str) -> tuple[str, bool]:
        """Return the root of the name's tree, and whether the name's colour is the other one."""
        differs = False
        while name in self._parent:
            name, flip = self._parent[name]
            differs ^= flip
        return name, differs

    def separate(self, first: str, second: str) -> bool:
        """Give two names different colours; return False where they are known to share one."""
        (root, flip), (other, other_flip) = self.root(first), self.root(second)
        if root == other:
            return flip != other_flip
        self._parent[other] = root, flip == other_flip
        return True

    def hidden(self, names: Iterable[str], rng: np.random.Generator) -> set[str]:
        """Return the names with the colour of what was never measured; draw it where it is free."""
        root, differs = self.root(_UNMEASURED)
        colour = {root: differs}
        found = set()
        for name in names:
            root, differs = self.root(name)
            if colour.setdefault(root, bool(rng.integers(2))) == differs:
                found.add(name)
        return found


def _unseen_combination(screen: Annotation, plan: _SplitPlan) -> HeldOut:
    """Hold out combinations, and larger ones that contain them.

    Singles stay, except where `singles_seen` asks for fewer of them.
    """
    combinations = sorted({tuple(sorted(names)) for names in screen.names if len(names) > 1})
    if not combinations:
        msg = "No cell has a combination of perturbations; expected labels such as 'A+B'."
        raise SchemaError(msg)
    measured = {name for names in screen.names if len(names) == 1 for name in names}
    n_singles, hidden = plan.options.singles_seen, set[str]()
    if n_singles is not None:
        combinations = _with_singles(combinations, measured, n_singles)
    if plan.options.held_out is None:
        chosen = plan.take(combinations)
    else:
        what = "combination" if n_singles is None else f"pair with {n_singles} or more singles"
        chosen = _find_named(screen, plan, combinations, what)
    if n_singles is not None:
        chosen, hidden = _hide_singles(chosen, measured, plan, n_singles)
    contains = supersets(frozenset(names) for names in chosen)
    description = screen.groups[["perturbation"]].assign(
        singles_seen=[len(names & (measured - hidden)) for names in screen.names]
    )
    if n_singles is not None:
        description["stratum"] = ["single" if len(n) < 2 else "combination" for n in screen.names]
    mask = [contains(names) or (len(names) == 1 and names <= hidden) for names in screen.names]
    return np.array(mask), description


def _find_named(
    screen: Annotation, plan: _SplitPlan, known: Iterable[Names], what: str
) -> set[Names]:
    """Return the `known` sets of names that `held_out` lists; their order does not matter."""
    by_label = {screen.separator.join(sorted(names)): names for names in known}
    found = set()
    for label in plan.options.held_out or ():
        parts = sorted(part.strip() for part in as_label(label).split(screen.separator))
        wanted = screen.separator.join(parts)
        if wanted not in by_label:
            near = get_close_matches(wanted, by_label, n=3, cutoff=0.5) or sorted(by_label)[:3]
            msg = (
                f"SplitOptions.held_out: {label!r} is not a {what} of this screen. Nearest: "
                f"{', '.join(map(repr, near))}."
            )
            raise SchemaError(msg)
        found.add(by_label[wanted])
    return found


def _with_singles(combinations: list[Names], measured: set[str], n_singles: int) -> list[Names]:
    """Return the pairs of which at least `n_singles` components were measured alone."""
    pairs: list[Names] = [
        n for n in combinations if len(n) == 2 and len(measured & set(n)) >= n_singles
    ]
    if not pairs:
        msg = (
            f"singles_seen={n_singles}: no combination of two has {n_singles} components that were "
            "also measured alone. Ask for fewer, or None."
        )
        raise SchemaError(msg)
    return pairs


def _hide_singles(
    chosen: set[Names], measured: set[str], plan: _SplitPlan, n_singles: int
) -> tuple[set[Names], set[str]]:
    """Return the pairs that can be held out together, and the singles to hide for them."""
    if n_singles != 1:
        unseen = {name for names in chosen for name in names} if n_singles == 0 else set[str]()
        return chosen, unseen & measured
    rng = np.random.default_rng([plan.seed, 4])
    pairs = sorted(chosen)
    colouring = _TwoColouring()
    kept = set()
    for i in rng.permutation(len(pairs)):
        first, second = (name if name in measured else _UNMEASURED for name in pairs[i])
        if colouring.separate(first, second):
            kept.add(pairs[i])
    if plan.options.held_out is not None and kept != chosen:
        some = [" and ".join(names) for names in sorted(chosen - kept)[:3]]
        msg = (
            f"singles_seen=1 is not possible for all of held_out: with {'; '.join(some)} the pairs "
            "form an odd ring, in which some pair has both singles or none. Leave one out."
        )
        raise SchemaError(msg)
    names = sorted({name for pair in kept for name in pair} & measured)
    return kept, colouring.hidden(names, rng)


@dataclass(frozen=True, slots=True)
class _SplitPlan:
    """How much is held out, which fold of it, in which random order, and what options ask for."""

    fraction: float
    fold: int
    seed: int
    options: SplitOptions

    def __post_init__(self) -> None:
        n_folds = math.floor(1 / self.fraction + 1e-9)
        if not 0 <= self.fold < n_folds:
            msg = f"fold={self.fold} does not exist: expected 0 to {n_folds - 1}, for 1 / fraction."
            raise ValueError(msg)

    def take(self, items: Iterable[T]) -> set[T]:
        """Return this fold's share of `items`, at least one; the items are in sorted order."""
        ordered = list(items)
        share = max(self.fraction, 1 / len(ordered))
        n_folds = math.floor(1 / share + 1e-9)
        if self.fold >= n_folds:
            msg = (
                f"fold={self.fold} does not exist: {len(ordered)} items and fraction="
                f"{self.fraction:g} make {n_folds} folds, numbered from 0."
            )
            raise ValueError(msg)
        place = np.random.default_rng([self.seed, 0]).permutation(len(ordered))
        start, stop = (
            math.floor(edge * share * len(ordered) + 0.5 + 1e-9)
            for edge in (self.fold, self.fold + 1)
        )
        return {ordered[i] for i in place[start:stop]}


def _unseen_perturbation(screen: Annotation, plan: _SplitPlan) -> HeldOut:
    """Hold out targets, or clusters of them, with every combination that contains one."""
    targets = sorted(set[str]().union(*screen.names))
    clusters = plan.options.groups or {target: target for target in targets}
    absent = [target for target in targets if target not in clusters]
    if absent:
        msg = f"SplitOptions.groups has no cluster for {absent[:3]}; give each perturbation one."
        raise SchemaError(msg)
    if not targets:
        msg = "All cells are controls; expected perturbed ones to hold out."
        raise SchemaError(msg)
    if plan.options.held_out is None:
        chosen = plan.take(sorted({clusters[target] for target in targets}))
        held_out = {target for target in targets if clusters[target] in chosen}
    else:
        singles = [(target,) for target in targets]
        held_out = {name for (name,) in _find_named(screen, plan, singles, "perturbation")}
    hit = [tuple(sorted(names & held_out)) for names in screen.names]
    description = screen.groups[["perturbation"]].assign(targets=pd.Series(hit, dtype=object))
    return np.array([bool(names) for names in hit]), description


def _context_transfer(screen: Annotation, plan: _SplitPlan) -> HeldOut:
    """Hold out perturbations in one context that are seen in another, with their combinations."""
    groups = list(zip(screen.names, screen.groups["context"].tolist(), strict=True))
    present = {(names, context) for names, context in groups if names}
    n_contexts = Counter(names for names, _ in present)
    eligible = _chosen_contexts(screen, plan.options.context)
    pairs = sorted(
        (tuple(sorted(names)), context)
        for names, context in present
        if n_contexts[names] > 1 and context in eligible
    )
    if not pairs:
        msg = (
            "No perturbation is seen in the context asked for and in another one; expected "
            "contexts, `keys=ScreenKeys(context=...)`, over which perturbations are repeated."
        )
        raise SchemaError(msg)
    held_out = _seen_elsewhere(plan.take(pairs), n_contexts)
    contains = {c: supersets(names for names, one in held_out if one == c) for _, c in held_out}
    mask = [context in contains and contains[context](names) for names, context in groups]
    hidden = {pair for pair, out in zip(groups, mask, strict=True) if out}
    elsewhere = Counter(names for names, _ in present - hidden)
    description = screen.groups[["perturbation", "context"]].assign(
        contexts_seen=[elsewhere[names] for names in screen.names]
    )
    return np.array(mask), description


def _unseen_context(screen: Annotation, plan: _SplitPlan) -> HeldOut:
    """Hold out every perturbed cell of some contexts; their controls stay visible."""
    control = screen.groups["control"].to_numpy(bool)
    context = screen.groups["context"].to_numpy()
    wanted = _chosen_contexts(screen, plan.options.context)
    eligible = sorted(wanted & set(context[control].tolist()) & set(context[~control].tolist()))
    if not eligible:
        names = [screen.contexts[i] for i in sorted(wanted)][:3]
        msg = (
            f"None of the contexts {names} has both control and perturbed cells; expected at least "
            "one, by `keys=ScreenKeys(context=...)`."
        )
        raise SchemaError(msg)
    held_out = plan.take(eligible) if plan.options.context is None else wanted
    mask = np.isin(context, sorted(held_out)) & ~control
    return mask, screen.groups[["perturbation", "context"]]


def _dose(screen: Annotation, plan: _SplitPlan) -> HeldOut:
    """Hold out one dose of some perturbations, wherever they are used at that dose."""
    inner = plan.options.dose == "inner"
    doses: dict[str, set[float]] = {}
    for condition in screen.conditions:
        if len(condition.components) == 1:
            doses.setdefault(condition.names[0], set()).add(condition.components[0].dose)
    eligible = sorted(name for name, seen in doses.items() if len(seen) >= (3 if inner else 2))
    if not eligible:
        msg = (
            f"No perturbation has {'three' if inner else 'two'} doses, so no {plan.options.dose} "
            "dose can be held out; name the column of doses with `keys=ScreenKeys(...)`."
        )
        raise SchemaError(msg)
    held_out = {
        name: sorted(doses[name])[len(doses[name]) // 2 if inner else -1]
        for name in plan.take(eligible)
    }
    mask = [
        any(
            part.dose == held_out[part.name] or (not inner and part.dose > held_out[part.name])
            for part in condition.components
            if part.name in held_out
        )
        for condition in screen.conditions
    ]
    description = screen.groups[["perturbation", "dose"]].assign(stratum=plan.options.dose)
    return np.array(mask), description


def _seen_elsewhere(
    pairs: Iterable[tuple[Names, int]], n_contexts: Mapping[frozenset[str], int]
) -> list[tuple[frozenset[str], int]]:
    """Return pairs of names and context without one of those that hold out all contexts."""
    kept: list[tuple[frozenset[str], int]] = []
    n_kept: Counter[frozenset[str]] = Counter()
    for names, context in ((frozenset(names), context) for names, context in sorted(pairs)):
        if n_kept[names] + 1 < n_contexts[names]:
            kept.append((names, context))
            n_kept[names] += 1
    return kept


def _chosen_contexts(screen: Annotation, wanted: Any) -> set[int]:  # noqa: ANN401
    """Return the contexts that match a label, `{key: label}`, or one of several; all for None."""
    if wanted is None:
        return set(range(len(screen.contexts)))
    if isinstance(wanted, tuple):
        return set[int]().union(*(_chosen_contexts(screen, one) for one in wanted))
    keys = list(screen.contexts[0])
    if isinstance(wanted, str):
        if len(keys) != 1:
            msg = f"context={wanted!r} needs one context key; with {keys} give {{key: label}}."
            raise SchemaError(msg)
        wanted = {keys[0]: wanted}
    matching = {
        i
        for i, labels in enumerate(screen.contexts)
        if all(labels.get(key) == as_label(value) for key, value in wanted.items())
    }
    if not matching:
        known = sorted({str(labels) for labels in screen.contexts})[:10]
        msg = f"No cell has context {dict(wanted)}; contexts are {', '.join(known)}."
        raise SchemaError(msg)
    return matching


#: For each kind that holds out conditions, what it holds out.
_HOLD_OUT: Mapping[str, Callable[[Annotation, _SplitPlan], HeldOut]] = {
    "unseen_combination": _unseen_combination,
    "unseen_perturbation": _unseen_perturbation,
    "context_transfer": _context_transfer,
    "unseen_context": _unseen_context,
    "dose": _dose,
}


Scenario = Literal[
    "cells",
    "unseen_combination",
    "unseen_perturbation",
    "context_transfer",
    "unseen_context",
    "dose",
]

_VALIDATION_FRACTION = 0.1


@checked
def split(
    adata: AnnData,
    kind: Scenario,
    *,
    seed: int | None = 0,
    keys: ScreenKeys | None = None,
    fraction: float = 0.2,
    fold: int = 0,
    options: SplitOptions | None = None,
) -> Split:
    """Hold out cells or conditions; controls are held out only by "cells".

    Kinds
        - "cells": a share of the cells of each condition and context. A sanity check.
        - "unseen_combination": a share of the combinations; every single stays, unless
          `SplitOptions(singles_seen=...)` asks for fewer of them.
        - "unseen_perturbation": a share of the targets, or of clusters of them, with every
          combination that contains one.
        - "context_transfer": a share of the pairs of perturbation and context, where the
          perturbation is seen in another context; `SplitOptions(shown=0.1)` shows some cells.
        - "unseen_context": all perturbed cells of a share of the contexts, or of a named one.
        - "dose": the inner or the top dose of a share of the perturbations.

    Instead of a share, `SplitOptions(held_out=[...])` names combinations or perturbations.

    A tenth of the training cells, over all conditions, is set apart as validation cells, but never
    all cells of a condition in a context: where each has one row, as in a table of signatures,
    there are none. Data without control cells can be split too, except by "unseen_context".

    Parameters
    ----------
    adata
        A screen.
    kind
        What is held out.
    seed
        Seed of every random choice.
    keys
        Columns that describe conditions and contexts; by default those that
        `scvi_perturb.pp.harmonize` recorded or writes.
    fraction
        Share that is held out, at least one item. 1 holds out all where that leaves something to
        train on, as with "dose".
    fold
        Which share: the folds of one seed do not overlap, so fraction 0.2 gives folds 0 to 4.
    options
        What only some kinds ask for.

    Returns
    -------
    A split that was checked for leaks.

    Raises
    ------
    ValueError
        If the kind, fraction or fold is not possible, or an option is not for this kind.
    SchemaError
        If a column is absent, nothing can be held out, a name to hold out is not in the screen, or
        nothing perturbed is left to train on.
    """
    keys = default_keys(adata) if keys is None else keys
    plan = _SplitPlan(float(fraction), int(fold), drawn_seed(seed), options or SplitOptions())
    plan.options.check_kind(kind)
    annotation = read_annotation(adata, keys)
    test, held_out = _test_cells(annotation, kind, plan)
    if not test.any():
        msg = (
            f"Kind {kind!r} with fraction={fraction:g} holds out no cell; each condition keeps one."
        )
        raise SchemaError(msg + " Raise the fraction, or hold out conditions by another kind.")
    trained = annotation.groups.loc[np.unique(annotation.group[~test]), "control"]
    if trained.all():
        msg = f"Kind {kind!r} with fraction={fraction:g} leaves no perturbed cell to train on."
        raise SchemaError(msg + " Lower the fraction, or choose another kind.")
    validation = np.zeros_like(test)
    rest = np.flatnonzero(~test)
    picked = _share(annotation.group[rest], _VALIDATION_FRACTION, seed=(plan.seed, 1))
    validation[rest[picked]] = True
    made = Split(
        kind=kind,
        seed=plan.seed,
        train=np.flatnonzero(~test & ~validation),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        held_out=tuple(held_out),
        parameters={
            "keys": keys.to_dict(),
            "fraction": plan.fraction,
            "fold": plan.fold,
            "options": plan.options.to_dict(),
        },
        data_hash=data_hash(adata, keys, annotation=annotation),
    )
    made.leaks(adata)
    return made


def _test_cells(
    annotation: Annotation, kind: str, plan: _SplitPlan
) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
    """Return which cells are tested, and the held-out conditions."""
    group, n_groups = annotation.group, len(annotation.groups)
    if kind == "cells":
        return _share(group, plan.fraction, fold=plan.fold, seed=(plan.seed, 2)), []
    mask, description = _HOLD_OUT[kind](annotation, plan)
    held_out = mask[group]
    if kind != "context_transfer":
        n_cells = np.bincount(group[held_out], minlength=n_groups)
        return held_out, describe(annotation, description, n_cells)
    shown = np.zeros_like(held_out)
    if plan.options.shown:
        candidates = np.flatnonzero(held_out)
        picked = _share(group[candidates], plan.options.shown, seed=(plan.seed, 3))
        shown[candidates[picked]] = True
    n_test, n_shown = (
        np.bincount(group[cells], minlength=n_groups) for cells in (held_out & ~shown, shown)
    )
    fields = ["perturbation", "context"]
    shown_rows = describe(annotation, description[fields], n_shown)
    count = {identity(row, fields): row["n_cells"] for row in shown_rows}
    rows = describe(annotation, description, n_test)
    return held_out & ~shown, [
        row | {"n_shown": count.get(identity(row, fields), 0)} for row in rows
    ]


def _share(
    group: NDArray[np.int64], fraction: float, *, fold: int = 0, seed: Sequence[int]
) -> NDArray[np.bool_]:
    """Return a random share of each group's cells, never all of them.

    Where the share of a group is not whole it is rounded up or down at random, so that it holds on
    average also for groups of few cells. A larger fraction contains a smaller one (for fold 0).
    """
    rng = np.random.default_rng(list(seed))
    order = np.lexsort((rng.random(len(group)), group))
    size = np.bincount(group)
    start = np.cumsum(size) - size
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - start[group[order]]
    offset = rng.random(len(size)) * (1 - 1e-9)
    low = np.floor(fold * fraction * size + offset + 1e-12)
    high = np.floor((fold + 1) * fraction * size + offset + 1e-12)
    high = np.minimum(high, low + size - 1)
    picked: NDArray[np.bool_] = (rank >= low[group]) & (rank < high[group])
    return picked
