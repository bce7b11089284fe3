"""Which cells are trained on, and which are held out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.data._annotation import data_hash, describe, identity, read_annotation
from scvi_perturb.data._keys import default_keys
from scvi_perturb.data._split_kinds import HOLD_OUT
from scvi_perturb.data._split_options import SplitOptions
from scvi_perturb.data._split_plan import SplitPlan
from scvi_perturb.data._split_record import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._annotation import Annotation
    from scvi_perturb.data._keys import ConditionKeys

__all__ = ["Split", "SplitKind", "SplitOptions", "split"]

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
