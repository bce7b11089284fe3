"""What the demo holds out, the hardest question that the screen can answer, and what is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb._core import SchemaError
from scvi_perturb.cli._app import UsageError
from scvi_perturb.data.condition import Condition, ScreenKeys, as_labels, default_keys
from scvi_perturb.data.condition_table import ConditionTable, encode_obs
from scvi_perturb.data.split.kinds import split
from scvi_perturb.data.split.record import Split, SplitOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.cli._screen import PreparedScreen

#: Cells that a condition needs to be held out or judged.
MIN_CELLS: Final = 20
_MOST_COMBINATIONS: Final = 3
_MOST_CASES: Final = 30


def hold_out(
    adata: AnnData, contexts: Sequence[str], *, named: Sequence[str] | None, seed: int
) -> tuple[Split, str]:
    """Hold out combinations of known parts; else a context; else a share of the cells.

    Returns the split, and what it holds out and asks in a sentence or two.

    Raises `UsageError`: When what was named cannot be held out.
    """
    labels = {key: set(as_labels(adata.obs[key])) for key in contexts}
    if named is not None:
        if set(named) <= set().union(*labels.values()):
            return _contexts(adata, labels, named, seed)
        return _combinations(adata, labels, named, seed)
    codes, table = encode_obs(adata.obs, default_keys(adata))
    pairs = _known_parts(table, np.bincount(codes, minlength=len(table)))
    random = np.random.default_rng(seed)
    if pairs:
        n = max(1, min(_MOST_COMBINATIONS, len(pairs) // 3))
        chosen = random.choice(len(pairs), n, replace=False)
        return _combinations(adata, labels, [pairs[i] for i in sorted(chosen)], seed)
    large = _large_contexts(adata, contexts, treated=codes != 0)
    if large:
        return _contexts(adata, labels, [str(random.choice(large))], seed)
    keys = replace(default_keys(adata), context=tuple(contexts))
    made = split(adata, "cells", keys=keys, fraction=0.2, seed=seed)
    others = "no two contexts with enough cells" if contexts else "one context only"
    return (
        made,
        "The screen has no combination of perturbations that were also measured alone, and "
        f"{others}. Held out is therefore a fifth of the cells of every condition: the model has "
        "seen each condition, and is asked whether it describes new cells of it. This is easier "
        "than predicting a condition that was never measured.",
    )


def _combinations(
    adata: AnnData, contexts: dict[str, set[str]], named: Sequence[str], seed: int
) -> tuple[Split, str]:
    options = SplitOptions(held_out=named)
    keys = replace(default_keys(adata), context=tuple(contexts))
    try:
        made = split(adata, "unseen_combination", keys=keys, seed=seed, options=options)
    except SchemaError as error:
        found = ", ".join(sorted(set().union(*contexts.values()))) or "none"
        msg = (
            f"--held-out {' '.join(named)}: found a name that is neither a combination nor a "
            "context; a single perturbation would then be unknown to the model. "
            f"{error} Contexts: {found}."
        )
        raise UsageError(msg) from error
    names = ", ".join(f"{row['perturbation']} ({row['n_cells']} cells)" for row in made.held_out)
    return (
        made,
        f"Held out are combinations: {names}. Not one cell of them was trained on; their parts "
        "were seen alone or in other combinations. The question is how effects combine.",
    )


def _contexts(
    adata: AnnData, contexts: dict[str, set[str]], named: Sequence[str], seed: int
) -> tuple[Split, str]:
    options = SplitOptions(
        context=[{key: name} for name in named for key in contexts if name in contexts[key]]
    )
    keys = replace(default_keys(adata), context=tuple(contexts))
    try:
        made = split(adata, "unseen_context", keys=keys, seed=seed, options=options)
    except SchemaError as error:
        msg = (
            f"--held-out {' '.join(named)}: expected contexts with perturbed and control cells, "
            "and perturbed cells in another one to learn from."
        )
        raise UsageError(msg) from error
    return (
        made,
        f"Held out is a context: all {len(made.test)} perturbed cells of {', '.join(named)}. Its "
        "control cells were seen, and the same perturbations in other contexts. The question is "
        "how an effect carries over.",
    )


def _known_parts(table: ConditionTable, n_cells: NDArray[np.int64]) -> list[str]:
    """Return the combinations whose components were all measured alone, with enough cells."""
    measured = set(table.conditions)
    found = {
        condition.names
        for condition, n in zip(table.conditions, n_cells, strict=True)
        if len(condition.components) > 1
        and n >= MIN_CELLS
        and all(
            Condition((part,), time=condition.time) in measured for part in condition.components
        )
    }
    return [table.separator.join(names) for names in sorted(found)]


def _large_contexts(
    adata: AnnData, contexts: Sequence[str], *, treated: NDArray[np.bool_]
) -> list[str]:
    """Return labels of contexts with enough cells of both kinds, if there are several."""
    if not contexts:
        return []
    label = pd.Series(as_labels(adata.obs[contexts[0]]), index=adata.obs_names)
    counted = pd.crosstab(label, treated).reindex(columns=[False, True], fill_value=0)
    enough = (counted[False] >= MIN_CELLS) & (counted[True] >= 2 * MIN_CELLS)
    labels = [str(name) for name in counted.index[enough]]
    return labels if len(labels) > 1 else []


@dataclass(frozen=True, slots=True)
class Case:
    """A held-out condition in a context.

    `title`: Name for tables and figures. `request`: What to ask of a model: a table of one row.
    `observed`: Held-out cells, `(n,)`. `control`: Control cells of the same context that were
    trained on, `(m,)`.
    """

    title: str
    request: pd.DataFrame
    observed: NDArray[np.int64]
    control: NDArray[np.int64]


def cases(screen: PreparedScreen, split: Split) -> tuple[list[Case], str]:
    """Return the held-out conditions with enough cells, and a word on those left out.

    Raises `UsageError`: When there is none.
    """
    obs, keys = screen.adata.obs, screen.keys
    columns = keys.obs_columns
    is_control = (obs[keys.perturbation].astype(str) == keys.control).to_numpy()
    seen = np.setdiff1d(np.flatnonzero(is_control), split.test)
    treated = split.test[~is_control[split.test]]
    groups = obs.iloc[treated][columns].astype(object)
    varying = {keys.perturbation, *(c for c in columns if obs[c].nunique() > 1)}
    found = []
    for members in groups.groupby(columns, dropna=False, sort=True).indices.values():
        request = groups.iloc[members[:1]].reset_index(drop=True)
        near = np.ones(len(seen), bool)
        for key in keys.context:
            near &= (obs[key].iloc[seen] == request[key][0]).to_numpy()
        found.append(Case(_title(request, keys, varying), request, treated[members], seen[near]))
    enough = [c for c in found if min(len(c.observed), len(c.control)) >= MIN_CELLS]
    if not enough:
        msg = (
            f"No held-out condition has {MIN_CELLS} cells and as many controls of its context, so "
            "nothing can be judged; name others with --held-out, or fewer --context-keys."
        )
        raise UsageError(msg)
    enough.sort(key=lambda case: -len(case.observed))
    kept = sorted(enough[:_MOST_CASES], key=lambda case: case.title)
    left = len(found) - len(kept)
    note = (
        f"{left} of {len(found)} held-out conditions are not judged: fewer than {MIN_CELLS} cells "
        f"or controls, or past the {_MOST_CASES} with the most cells."
    )
    return kept, note if left else ""


def _title(request: pd.DataFrame, keys: ScreenKeys, varying: Collection[str]) -> str:
    """Return the perturbation, and of the rest what is not the same in all cells."""
    forms = {keys.dose: "dose {}", keys.time: "{} h"}
    row = {str(column): value for column, value in request.loc[0].items()}
    return ", ".join(
        forms.get(column, "{}").format(value)
        for column, value in row.items()
        if column in varying and not pd.isna(value)
    )
