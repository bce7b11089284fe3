"""Combinations that are held out, and which of their components stay measured alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._split_held import Held, containing, find_named
from scvi_perturb.data._split_sides import NOWHERE, Sides

if TYPE_CHECKING:
    from scvi_perturb.data._annotation import Annotation
    from scvi_perturb.data._split_plan import SplitPlan

__all__ = ["unseen_combination"]

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
