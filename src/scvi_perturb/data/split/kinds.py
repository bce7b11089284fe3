"""Split a screen by what is held out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.data.condition import as_label
from scvi_perturb.data.fields import data_hash, describe, identity, read_annotation
from scvi_perturb.data.keys import default_keys
from scvi_perturb.data.split.record import Held, Split, SplitOptions, containing, find_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.fields import Annotation
    from scvi_perturb.data.keys import ConditionKeys

__all__ = [
    "HOLD_OUT",
    "NOWHERE",
    "Sides",
    "Split",
    "SplitKind",
    "SplitOptions",
    "SplitPlan",
    "split",
    "unseen_combination",
]


#: Stands for components that are not measured alone.
NOWHERE = ""


class Sides:
    """Two sides, "hidden" and "seen", with items known to stand on opposite ones."""

    def __init__(self) -> None:
        self._up: dict[str, tuple[str, bool]] = {}

    def find(self, name: str) -> tuple[str, bool]:
        """Return the head of the name's party, and whether the name opposes it."""
        opposes = False
        while name in self._up:
            name, flip = self._up[name]
            opposes ^= flip
        return name, opposes

    def oppose(self, first: str, second: str) -> bool:
        """Put two on opposite sides; False where they are known to stand on one."""
        (head, flip), (other, other_flip) = self.find(first), self.find(second)
        if head == other:
            return flip != other_flip
        self._up[other] = head, flip == other_flip
        return True

    def hidden(self, names: Iterable[str], rng: np.random.Generator) -> set[str]:
        """Return the names on the hidden side, which is that of what was never measured."""
        head, opposes = self.find(NOWHERE)
        side = {head: opposes}
        found = set()
        for name in names:
            head, opposes = self.find(name)
            if side.setdefault(head, bool(rng.integers(2))) == opposes:
                found.add(name)
        return found


Names = tuple[str, ...]


def unseen_combination(screen: Annotation, plan: SplitPlan) -> Held:
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
        chosen = find_named(
            plan.options.held_out, combinations, separator=screen.separator, what=what
        )
    if n_singles is not None:
        chosen, hidden = _hide(chosen, measured, plan, n_singles)
    held = containing(frozenset(names) for names in chosen)
    about = screen.groups[["perturbation"]].assign(
        singles_seen=[len(names & (measured - hidden)) for names in screen.names]
    )
    if n_singles is not None:
        about["stratum"] = ["single" if len(n) < 2 else "combination" for n in screen.names]
    mask = [held(names) or (len(names) == 1 and names <= hidden) for names in screen.names]
    return Held(np.array(mask), about)


def _with_singles(combinations: list[Names], measured: set[str], n_singles: int) -> list[Names]:
    """Return the pairs of which at least `n_singles` components were measured alone."""
    able: list[Names] = [
        names
        for names in combinations
        if len(names) == 2 and len(measured & set(names)) >= n_singles
    ]
    if not able:
        msg = (
            f"singles_seen={n_singles}: no combination of two has {n_singles} components that were "
            "also measured alone. Ask for fewer, or None."
        )
        raise SchemaError(msg)
    return able


def _hide(
    chosen: set[Names], measured: set[str], plan: SplitPlan, n_singles: int
) -> tuple[set[Names], set[str]]:
    """Return the pairs that can be held out together, and the singles to hide for them."""
    if n_singles != 1:
        unseen = {name for names in chosen for name in names} if n_singles == 0 else set[str]()
        return chosen, unseen & measured
    rng = np.random.default_rng([plan.seed, 4])
    pairs = sorted(chosen)
    sides = Sides()
    kept = set()
    for i in rng.permutation(len(pairs)):
        first, second = (name if name in measured else NOWHERE for name in pairs[i])
        if sides.oppose(first, second):
            kept.add(pairs[i])
    if plan.options.held_out is not None and kept != chosen:
        some = [" and ".join(names) for names in sorted(chosen - kept)[:3]]
        msg = (
            f"singles_seen=1 is not possible for all of held_out: with {'; '.join(some)} the pairs "
            "form an odd ring, in which some pair has both singles or none. Leave one out."
        )
        raise SchemaError(msg)
    names = sorted({name for pair in kept for name in pair} & measured)
    return kept, sides.hidden(names, rng)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How much is held out, which part of it, and in which random order.

    Parameters
    ----------
    fraction
        Share of what can be held out, in (0, 1].
    fold
        Which share: folds of one seed do not overlap.
    seed
        Seed of the order.
    options
        What only some kinds ask for.

    Raises
    ------
    ValueError
        If the fraction or fold is out of range.
    """

    fraction: float
    fold: int
    seed: int
    options: SplitOptions

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            msg = f"fraction={self.fraction} is not a share; expected 0 < fraction <= 1."
            raise ValueError(msg)
        n_folds = math.floor(1 / self.fraction + 1e-9)
        if not 0 <= self.fold < n_folds:
            msg = f"fold={self.fold} does not exist: expected 0 to {n_folds - 1}, for 1 / fraction."
            raise ValueError(msg)

    def take(self, items: Iterable[T]) -> set[T]:
        """Return this fold's share of `items`, at least one; the items are in sorted order.

        Raises
        ------
        ValueError
            If there are not that many folds.
        """
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


def _unseen_perturbation(screen: Annotation, plan: SplitPlan) -> Held:
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
        held = {target for target in targets if clusters[target] in chosen}
    else:
        singles = [(target,) for target in targets]
        named = find_named(
            plan.options.held_out, singles, separator=screen.separator, what="perturbation"
        )
        held = {target for names in named for target in names}
    hit = [tuple(sorted(names & held)) for names in screen.names]
    about = screen.groups[["perturbation"]].assign(targets=pd.Series(hit, dtype=object))
    return Held(np.array([bool(names) for names in hit]), about)


def _context_transfer(screen: Annotation, plan: SplitPlan) -> Held:
    """Hold out perturbations in one context that are seen in another, with their combinations."""
    cells = list(zip(screen.names, screen.groups["context"].tolist(), strict=True))
    present = {(names, where) for names, where in cells if names}
    n_contexts = Counter(names for names, _ in present)
    eligible = _chosen_contexts(screen, plan.options.context)
    pairs = sorted(
        (tuple(sorted(names)), where)
        for names, where in present
        if n_contexts[names] > 1 and where in eligible
    )
    if not pairs:
        msg = (
            "No perturbation is seen in the context asked for and in another one; expected context "
            "keys, such as context_keys=['cell_type'], over which perturbations are repeated."
        )
        raise SchemaError(msg)
    held = _seen_elsewhere(plan.take(pairs), n_contexts)
    within = {c: containing(names for names, where in held if where == c) for _, c in held}
    mask = [where in within and within[where](names) for names, where in cells]
    hidden = {pair for pair, out in zip(cells, mask, strict=True) if out}
    elsewhere = Counter(names for names, _ in present - hidden)
    about = screen.groups[["perturbation", "context"]].assign(
        contexts_seen=[elsewhere[names] for names in screen.names]
    )
    return Held(np.array(mask), about)


def _unseen_context(screen: Annotation, plan: SplitPlan) -> Held:
    """Hold out every perturbed cell of some contexts; their controls stay visible."""
    control = screen.groups["control"].to_numpy(bool)
    context = screen.groups["context"].to_numpy()
    wanted = _chosen_contexts(screen, plan.options.context)
    eligible = sorted(wanted & set(context[control].tolist()) & set(context[~control].tolist()))
    if not eligible:
        names = [screen.contexts[i] for i in sorted(wanted)][:3]
        msg = (
            f"None of the contexts {names} has both control and perturbed cells; expected at least "
            "one, by context keys such as context_keys=['cell_type']."
        )
        raise SchemaError(msg)
    held = plan.take(eligible) if plan.options.context is None else wanted
    mask = np.isin(context, sorted(held)) & ~control
    return Held(mask, screen.groups[["perturbation", "context"]])


def _dose(screen: Annotation, plan: SplitPlan) -> Held:
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
            "dose can be held out; name the column of doses with `keys=ConditionKeys(...)`."
        )
        raise SchemaError(msg)
    held = {name: _held_dose(doses[name], inner=inner) for name in plan.take(eligible)}
    mask = [
        any(
            part.dose == held[part.name] or (not inner and part.dose > held[part.name])
            for part in condition.components
            if part.name in held
        )
        for condition in screen.conditions
    ]
    about = screen.groups[["perturbation", "dose"]].assign(stratum=plan.options.dose)
    return Held(np.array(mask), about)


def _seen_elsewhere(
    pairs: Iterable[tuple[tuple[str, ...], int]], n_contexts: Mapping[frozenset[str], int]
) -> list[tuple[frozenset[str], int]]:
    """Return pairs of names and context without one of those that hold out all contexts."""
    kept: list[tuple[frozenset[str], int]] = []
    n_held: Counter[frozenset[str]] = Counter()
    for names, where in sorted(pairs):
        held = frozenset(names)
        if n_held[held] + 1 < n_contexts[held]:
            kept.append((held, where))
            n_held[held] += 1
    return kept


def _held_dose(doses: set[float], *, inner: bool) -> float:
    """Return the middle dose, or the largest."""
    return sorted(doses)[len(doses) // 2] if inner else max(doses)


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
HOLD_OUT: Mapping[str, Callable[[Annotation, SplitPlan], Held]] = {
    "unseen_combination": unseen_combination,
    "unseen_perturbation": _unseen_perturbation,
    "context_transfer": _context_transfer,
    "unseen_context": _unseen_context,
    "dose": _dose,
}


SplitKind = Literal[
    "cells",
    "unseen_combination",
    "unseen_perturbation",
    "context_transfer",
    "unseen_context",
    "dose",
]

_KINDS = ("cells", *HOLD_OUT)
_VALIDATION_FRACTION = 0.1


def split(
    adata: AnnData,
    kind: SplitKind,
    *,
    seed: int = 0,
    keys: ConditionKeys | None = None,
    context_keys: Sequence[str] = (),
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
        Columns that describe conditions; by default those that `scvi_perturb.pp.harmonize` writes.
    context_keys
        Columns that describe the context, such as cell type or donor.
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
    check_choice("kind", kind, _KINDS)
    keys = default_keys(adata) if keys is None else keys
    contexts = [context_keys] if isinstance(context_keys, str) else list(context_keys)
    plan = SplitPlan(float(fraction), int(fold), int(seed), options or SplitOptions())
    plan.options.check_kind(kind)
    annotation = read_annotation(adata, keys, contexts)
    test, about = _tested(annotation, kind, plan)
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
    validating = _share(annotation.group[rest], _VALIDATION_FRACTION, seed=(plan.seed, 1))
    validation[rest[validating]] = True
    made = Split(
        kind=kind,
        seed=plan.seed,
        train=np.flatnonzero(~test & ~validation),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        held_out=tuple(about),
        parameters={
            "keys": asdict(keys),
            "context_keys": contexts,
            "fraction": plan.fraction,
            "fold": plan.fold,
            "options": plan.options.to_dict(),
        },
        data_hash=data_hash(adata, annotation),
    )
    made.leaks(adata)
    return made


def _tested(
    annotation: Annotation, kind: str, plan: SplitPlan
) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
    """Return which cells are tested, and the held-out conditions."""
    group = annotation.group
    if kind == "cells":
        return _share(group, plan.fraction, fold=plan.fold, seed=(plan.seed, 2)), []
    held = HOLD_OUT[kind](annotation, plan)
    test: NDArray[np.bool_] = held.groups[group]
    shown = np.zeros_like(test)
    candidates = np.flatnonzero(test)
    if plan.options.shown and kind == "context_transfer":
        picked = _share(group[candidates], plan.options.shown, seed=(plan.seed, 3))
        shown[candidates[picked]] = True
    n_groups = len(annotation.groups)
    about = describe(annotation, held.about, np.bincount(group[test & ~shown], minlength=n_groups))
    if kind == "context_transfer":
        fields = ["perturbation", "context"]
        n_shown = describe(
            annotation, held.about[fields], np.bincount(group[shown], minlength=n_groups)
        )
        count = {identity(row, fields): row["n_cells"] for row in n_shown}
        for row in about:
            row["n_shown"] = count.get(identity(row, fields), 0)
    return test & ~shown, about


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
