"""What the demo holds out: the hardest question that the screen can answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.cli._options import UsageError
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.condition_table import ConditionTable, encode_obs
from scvi_perturb.data.keys import as_labels, default_keys
from scvi_perturb.data.split.kinds import split
from scvi_perturb.data.split.record import Split, SplitOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["HeldOut", "hold_out"]

#: Cells that a condition needs to be held out or judged.
MIN_CELLS: Final = 20
_MOST_COMBINATIONS: Final = 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A split, and why it was chosen.

    Attributes
    ----------
    split
        What trains and what does not.
    story
        What is held out and what that asks, in a sentence or two.
    """

    split: Split
    story: str


def hold_out(
    adata: AnnData, contexts: Sequence[str], *, named: Sequence[str] | None, seed: int
) -> HeldOut:
    """Hold out combinations of known parts; else a context; else a share of the cells.

    Raises
    ------
    UsageError
        When what was named cannot be held out.
    """
    codes, table = encode_obs(adata.obs, default_keys(adata))
    if named is not None:
        if all(_in_context(adata, contexts, name).any() for name in named):
            return _contexts(adata, contexts, named, seed)
        return _combinations(adata, contexts, _sets(named, table, adata, contexts), seed)
    pairs = _known_parts(table, np.bincount(codes, minlength=len(table)))
    random = np.random.default_rng(seed)
    if pairs:
        n = max(1, min(_MOST_COMBINATIONS, len(pairs) // 3))
        chosen = random.choice(len(pairs), n, replace=False)
        return _combinations(adata, contexts, [pairs[i] for i in sorted(chosen)], seed)
    large = _large_contexts(adata, contexts, treated=codes != 0)
    if large:
        return _contexts(adata, contexts, [str(random.choice(large))], seed)
    made = split(adata, "cells", context_keys=contexts, fraction=0.2, seed=seed)
    why = "no combination of perturbations that were also measured alone"
    others = "one context only" if len(contexts) == 0 else "no two contexts with enough cells"
    return HeldOut(
        made,
        f"The screen has {why}, and {others}. Held out is therefore a fifth of the cells of every "
        "condition: the model has seen each condition, and is asked whether it describes new "
        "cells of it. This is easier than predicting a condition that was never measured.",
    )


def _combinations(
    adata: AnnData, contexts: Sequence[str], held: Sequence[frozenset[str]], seed: int
) -> HeldOut:
    separator = default_keys(adata).separator
    named = [separator.join(sorted(names)) for names in held]
    options = SplitOptions(held_out=named)
    made = split(adata, "unseen_combination", context_keys=contexts, seed=seed, options=options)
    names = ", ".join(f"{row['perturbation']} ({row['n_cells']} cells)" for row in made.held_out)
    return HeldOut(
        made,
        f"Held out are combinations: {names}. Not one cell of them was trained on; their parts "
        "were seen alone or in other combinations. The question is how effects combine.",
    )


def _contexts(adata: AnnData, contexts: Sequence[str], named: Sequence[str], seed: int) -> HeldOut:
    keys = {key: set(as_labels(adata.obs[key])) for key in contexts}
    options = SplitOptions(
        context=[{key: name} for name in named for key, labels in keys.items() if name in labels]
    )
    try:
        made = split(adata, "unseen_context", context_keys=contexts, seed=seed, options=options)
    except SchemaError as error:
        msg = (
            f"--held-out {' '.join(named)}: expected contexts with perturbed and control cells, "
            "and perturbed cells in another one to learn from."
        )
        raise UsageError(msg) from error
    return HeldOut(
        made,
        f"Held out is a context: all {len(made.test)} perturbed cells of {', '.join(named)}. Its "
        "control cells were seen, and the same perturbations in other contexts. The question is "
        "how an effect carries over.",
    )


def _known_parts(table: ConditionTable, n_cells: NDArray[np.int64]) -> list[frozenset[str]]:
    """Return the combinations whose components were all measured alone, with enough cells."""
    measured = set(table.conditions)
    found = {
        frozenset(condition.names)
        for condition, n in zip(table.conditions, n_cells, strict=True)
        if len(condition.components) > 1
        and n >= MIN_CELLS
        and all(
            Condition((part,), time=condition.time) in measured for part in condition.components
        )
    }
    return sorted(found, key=sorted)


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


def _in_context(adata: AnnData, contexts: Collection[str], name: str) -> NDArray[np.bool_]:
    hits = [as_labels(adata.obs[key]) == name for key in contexts]
    found: NDArray[np.bool_] = np.any([np.zeros(adata.n_obs, bool), *hits], axis=0)
    return found


def _sets(
    named: Sequence[str], table: ConditionTable, adata: AnnData, contexts: Sequence[str]
) -> list[frozenset[str]]:
    """Return the components of the combinations that were named."""
    known = {frozenset(c.names) for c in table.conditions}
    asked = []
    for name in named:
        try:
            names = frozenset(Condition.parse(name).names)
        except SchemaError as error:
            raise UsageError(f"--held-out {name}: {error}") from error  # noqa: EM102
        if len(names) == 1 and names in known:
            msg = (
                f"--held-out {name}: a single perturbation would then be unknown to the model; "
                "name combinations ('A+B') or contexts."
            )
            raise UsageError(msg)
        if len(names) < 2 or names not in known:
            labels = sorted("+".join(sorted(c.names)) for c in table.conditions if len(c.names) > 1)
            labels += [str(x) for key in contexts for x in adata.obs[key].unique()]
            some = f"choose of {', '.join(labels[:12])}" if labels else "the screen has neither"
            msg = f"--held-out {name}: neither a combination nor a context; {some}."
            raise UsageError(msg)
        asked.append(names)
    return asked
