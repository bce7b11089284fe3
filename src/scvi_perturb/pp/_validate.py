"""Look a screen over before a model is trained on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._compat import layer_names
from scvi_perturb._core import SchemaError
from scvi_perturb.data.condition import default_keys
from scvi_perturb.data.fields import read_annotation
from scvi_perturb.data.reader import check_raw_counts
from scvi_perturb.pp._conditions import looks_like_control
from scvi_perturb.pp._quantities import is_missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from scvi_perturb.data.condition import Condition, ScreenKeys
    from scvi_perturb.data.fields import Annotation

__all__ = ["ScreenReport", "validate"]

_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class ScreenReport:
    """What a screen holds and what is wrong with it.

    Parameters
    ----------
    n_cells, n_genes
        Shape of the screen.
    n_conditions
        Number of different conditions, without control.
    n_controls
        Number of control cells in each context; without context keys, of all cells.
    raw_counts
        Whether the matrix holds raw counts, as far as a sample tells.
    problems
        One message each, with what to do. Empty if nothing was found.
    """

    n_cells: int
    n_genes: int
    n_conditions: int
    n_controls: dict[str, int]
    raw_counts: bool
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        """Say it in a few lines."""
        controls = ", ".join(f"{context} {n}" for context, n in self.n_controls.items())
        lines = [
            f"{self.n_cells} cells x {self.n_genes} genes, {self.n_conditions} conditions",
            f"control cells: {controls or 'none'}",
            f"raw counts: {'yes' if self.raw_counts else 'no'}",
            f"problems: {len(self.problems) or 'none'}",
        ]
        return "\n".join([*lines, *(f"  - {problem}" for problem in self.problems)])


@checked
def validate(
    adata: AnnData,
    *,
    keys: ScreenKeys | None = None,
    min_cells: int = 10,
) -> ScreenReport:
    """Report on a screen; nothing is changed and no problem raises.

    Parameters
    ----------
    adata
        A screen, in memory or backed.
    keys
        Where conditions, contexts and counts are; by default what :func:`harmonize` recorded or
        writes.
    min_cells
        Conditions and controls of a context with fewer cells are reported.

    Returns
    -------
    Numbers of cells, conditions and controls, whether counts are raw, and the problems.
    """
    problems = list(_name_problems(adata))
    n_conditions, n_controls = 0, {}
    try:
        screen = read_annotation(adata, keys or default_keys(adata))
    except SchemaError as error:
        problems.append(str(error))
    else:
        n_conditions = len({c for c in screen.conditions if not c.is_control})
        n_controls = _controls(screen)
        problems += _condition_problems(screen, n_controls, min_cells)
    layer = None if keys is None else keys.layer
    raw_counts, problem = _counts(adata, layer)
    if problem:
        problems.append(problem)
    else:
        problems += _depth_problems(adata, layer)
    return ScreenReport(
        n_cells=adata.n_obs,
        n_genes=adata.n_vars,
        n_conditions=n_conditions,
        n_controls=n_controls,
        raw_counts=raw_counts,
        problems=tuple(problems),
    )


def _name_problems(adata: AnnData) -> Iterator[str]:
    """Yield what is wrong with the names of cells and genes."""
    for what, names in (("obs_names", adata.obs_names), ("var_names", adata.var_names)):
        repeated = names[names.duplicated()]
        if len(repeated):
            yield (
                f"{len(repeated)} {what} come more than once, such as {str(repeated[0])!r}; use "
                f"adata.{what}_make_unique()."
            )


def _controls(screen: Annotation) -> dict[str, int]:
    """Return the number of control cells of each context."""
    size = np.bincount(screen.group, minlength=len(screen.groups))
    control = screen.groups["control"].to_numpy(bool)
    context = screen.groups["context"].to_numpy()
    names = [", ".join(labels.values()) or "all" for labels in screen.contexts]
    return {name: int(size[control & (context == i)].sum()) for i, name in enumerate(names)}


def _condition_problems(
    screen: Annotation, n_controls: dict[str, int], min_cells: int
) -> Iterator[str]:
    """Yield what is wrong with the conditions and their controls."""
    if not any(n_controls.values()):
        yield "No cell is control; name its label with `harmonize(adata, control=...)`."
    else:
        few = [f"{context} ({n})" for context, n in n_controls.items() if n < min_cells]
        if few:
            yield (
                f"Contexts with fewer than {min_cells} control cells: {', '.join(few[:5])}; drop "
                "them, or describe contexts by fewer columns."
            )
    names = sorted(set[str]().union(*screen.names))
    alike = [name for name in names if looks_like_control(name)]
    if alike:
        yield f"Perturbations that look like controls: {alike}; run `harmonize`."
    missing = [name for name in names if is_missing(name)]
    if missing:
        yield f"Perturbations that look like missing labels: {missing}; drop these cells."
    n_cells: Counter[Condition] = Counter()
    for condition, n in zip(screen.conditions, np.bincount(screen.group).tolist(), strict=True):
        n_cells[condition] += n
    rare = [str(c) for c, n in n_cells.items() if n < min_cells and not c.is_control]
    if rare:
        yield f"{len(rare)} conditions have fewer than {min_cells} cells, such as {rare[0]!r}."


def _counts(adata: AnnData, layer: str | None) -> tuple[bool, str | None]:
    """Return whether the matrix holds raw counts, and why not."""
    if layer is not None and layer not in adata.layers:
        return False, f"Layer {layer!r} was not found; the layers are {layer_names(adata)}."
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    try:
        check_raw_counts(
            adata.X if layer is None else adata.layers[layer],
            where=where,
            layers=dict(adata.layers),
        )
    except SchemaError as error:
        return False, str(error)
    return True, None


def _depth_problems(adata: AnnData, layer: str | None) -> Iterator[str]:
    """Yield what is wrong with the depth of a sample of cells."""
    rows = np.unique(np.linspace(0, adata.n_obs - 1, min(_SAMPLE, adata.n_obs)).astype(int))
    counts = (adata.X if layer is None else adata.layers[layer])[rows]
    total = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    n_empty = int((total == 0).sum())
    if n_empty:
        yield f"{n_empty} of {len(rows)} sampled cells have no counts; drop them."
    if "library_size" in adata.obs:
        size = pd.to_numeric(adata.obs["library_size"].iloc[rows], errors="coerce").to_numpy(float)
        n_less = int((~(size >= total * (1 - 1e-4))).sum())
        if n_less:
            yield (
                f"obs['library_size'] is less than the cell's counts in {n_less} of {len(rows)} "
                "sampled cells; it should count all genes. Drop the column or mend it."
            )
