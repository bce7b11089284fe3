"""Check a screen before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._compat import layer_names, setup_arguments
from scvi_perturb._core import UNS_KEY, SchemaError
from scvi_perturb.data.condition import ScreenKeys, as_columns, as_labels, default_keys
from scvi_perturb.data.fields import encode_labels, read_annotation
from scvi_perturb.data.matching import effects_of_batches, tell_batch_effects
from scvi_perturb.data.reader import check_raw_counts, other_matrices
from scvi_perturb.data.screen import screen_keys
from scvi_perturb.pp._conditions import label_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.fields import Annotation
    from scvi_perturb.features.store import PerturbationFeatures

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
    controls_by_batch
        Number of control cells, one row a context and one column a batch; no columns without
        batches.
    n_featured
        Number of perturbations that have features; None where none were given.
    """

    n_cells: int
    n_genes: int
    n_conditions: int
    n_controls: dict[str, int]
    raw_counts: bool
    problems: tuple[str, ...]
    controls_by_batch: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    n_featured: int | None = None

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    @property
    def _has_batches(self) -> bool:
        return self.controls_by_batch.shape[1] > 1

    def __str__(self) -> str:
        """Return the report as a few lines of text."""
        controls = ", ".join(f"{context} {n}" for context, n in self.n_controls.items())
        lines = [
            f"{self.n_cells} cells x {self.n_genes} genes, {self.n_conditions} conditions",
            f"control cells: {controls or 'none'}",
            *(self.controls_by_batch.to_string().splitlines() if self._has_batches else ()),
            *(() if self.n_featured is None else (f"with features: {self.n_featured}",)),
            f"raw counts: {'yes' if self.raw_counts else 'no'}",
            f"problems: {len(self.problems) or 'none'}",
        ]
        return "\n".join([*lines, *(f"  - {problem}" for problem in self.problems)])


@checked
def validate(
    adata: AnnData,
    *,
    keys: ScreenKeys | None = None,
    context_keys: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    features: PerturbationFeatures | None = None,
    min_cells: int = 10,
) -> ScreenReport:
    """Report on a screen; change nothing, and list problems instead of raising them.

    Parameters
    ----------
    adata
        A screen, in memory or backed.
    keys
        Where conditions, contexts and counts are; by default what `setup_anndata` registered, else
        what :func:`harmonize` recorded or writes.
    context_keys, batch_key
        Columns of contexts and of batches, in place of those of `keys`. Without either, batches are
        the column "batch", if there is one.
    features
        Features of perturbations, to count those of the screen that have some.
    min_cells
        Conditions and controls of a context with fewer cells are reported.

    Returns
    -------
    Numbers of cells, conditions and controls, whether counts are raw, and the problems.

    Raises
    ------
    TypeError
        If `adata` is no AnnData.
    """
    problems = list(_name_problems(adata))
    n_conditions, n_controls, n_featured = 0, {}, None
    table = pd.DataFrame()
    layer = None if keys is None else keys.layer
    try:
        keys = _keys(adata, keys, context_keys, batch_key)
        layer = keys.layer
        screen = read_annotation(adata, keys)
    except SchemaError as error:
        problems.append(str(error))
    else:
        n_conditions = len({c for c in screen.conditions if not c.is_control})
        n_controls = _controls(screen)
        problems += _condition_problems(screen, n_controls, min_cells)
        problems += _doubts(adata, screen)
        problems += _number_problems(adata, keys)
        if features is not None:
            n_featured, problem = _featured(screen, features)
            problems += [problem] if problem else []
        if keys.batch is not None:
            table, problem = _batches(adata, keys.batch, screen)
            problems += [problem] if problem else []
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
        controls_by_batch=table,
        n_featured=n_featured,
    )


def _keys(
    adata: AnnData,
    keys: ScreenKeys | None,
    context_keys: str | Sequence[str] | None,
    batch_key: str | None,
) -> ScreenKeys:
    """Return where conditions, contexts and batches are: as given, registered, or harmonised."""
    if keys is None:
        registered = setup_arguments(adata)
        keys = default_keys(adata) if registered is None else screen_keys(registered)
        if keys.batch is None and registered is None and "batch" in adata.obs:
            keys = replace(keys, batch="batch")
    if context_keys is not None:
        keys = replace(keys, context=as_columns(context_keys))
    return keys if batch_key is None else replace(keys, batch=batch_key)


def _doubts(adata: AnnData, screen: Annotation) -> Iterator[str]:
    """Yield the labels that `harmonize` found to disagree with the rest of the file."""
    record = adata.uns.get(UNS_KEY, {})
    doubtful = record.get("doubtful_labels", {}) if hasattr(record, "get") else {}
    present = {*screen.groups["perturbation"]}
    labels: dict[str, list[str]] = {}
    for label, reason in zip(doubtful.get("label", ()), doubtful.get("reason", ()), strict=True):
        if label in present:
            labels.setdefault(str(reason), []).append(str(label))
    for reason, found in labels.items():
        yield (
            f"{len(found)} labels disagree with the rest of the file, such as "
            f"{', '.join(map(repr, found[:3]))}: {reason}. Mend the label or that column; "
            "`harmonize(adata, separator=...)` names what stands between names."
        )


def _number_problems(adata: AnnData, keys: ScreenKeys) -> Iterator[str]:
    """Yield the labels of a screen that was not harmonised whose number of names is another."""
    if "nperts" not in adata.obs or UNS_KEY in adata.uns:
        return
    try:
        numbers = pd.to_numeric(pd.Series(as_labels(adata.obs["nperts"])), errors="coerce")
    except SchemaError as error:
        yield str(error)
        return
    pairs = pd.DataFrame({"label": as_labels(adata.obs[keys.perturbation]), "n": numbers})
    wrong = []
    for label, n in pairs.dropna().drop_duplicates().itertuples(index=False, name=None):
        names = [name.strip() for name in label.split(keys.separator)]
        treated = [name for name in names if name != keys.control]
        if treated and n not in (len(names), len(treated)):
            wrong.append(label)
    if wrong:
        yield (
            f"obs['nperts'] is not the number of names in {len(wrong)} labels, such as "
            f"{', '.join(map(repr, sorted(wrong)[:3]))}; run `harmonize`, which reads both."
        )


def _featured(screen: Annotation, features: PerturbationFeatures) -> tuple[int, str | None]:
    """Return how many perturbations have features, and what to say of the others."""
    names = set[str]().union(*screen.names)
    lacking = sorted(name for name in names if name not in features)
    if not lacking:
        return len(names), None
    return len(names) - len(lacking), (
        f"{len(lacking)} of {len(names)} perturbations have no features, such as {lacking[0]!r}; "
        "name features as the screen does."
    )


def _batches(adata: AnnData, batch: str, screen: Annotation) -> tuple[pd.DataFrame, str | None]:
    """Return the control cells by context and batch, and which effects no batch tells."""
    if batch not in adata.obs:
        return pd.DataFrame(), f"obs has no column {batch!r} of batches; name one as `batch_key`."
    n_missing = int(adata.obs[batch].isna().sum())
    if n_missing:
        return pd.DataFrame(), f"obs[{batch!r}] has {n_missing} missing labels; fill or drop them."
    codes, labels = encode_labels(adata.obs, (batch,), [])
    control = screen.groups["control"].to_numpy(bool)[screen.group]
    context = screen.groups["context"].to_numpy()[screen.group]
    contexts = [" / ".join(own.values()) or "all" for own in screen.contexts]
    table = np.zeros((len(contexts), len(labels)), int)
    np.add.at(table, (context[control], codes[control]), 1)
    counted = pd.DataFrame(table, index=contexts, columns=[label for (label,) in labels])
    if not control.any():
        return counted, None
    named = sorted({*screen.conditions}, key=lambda one: (not one.is_control, str(one)))
    condition = np.array([named.index(one) for one in screen.conditions])[screen.group]
    pairs = effects_of_batches(condition, context, codes)
    said = [f"{named[c]}" + (f" in {contexts[x]}" if screen.contexts[x] else "") for c, x in pairs]
    return counted, tell_batch_effects(said) if said else None


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
    yield from label_problems(set[str]().union(*screen.names))
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
            layers=other_matrices(adata),
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
