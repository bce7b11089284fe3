"""What each kind of split holds out, decided for groups of cells of one condition and context."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._condition import as_label
from scvi_perturb.data._split_combinations import unseen_combination
from scvi_perturb.data._split_held import Held, containing, find_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from scvi_perturb.data._annotation import Annotation
    from scvi_perturb.data._split_plan import SplitPlan

__all__ = ["HOLD_OUT"]


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
