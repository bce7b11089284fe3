"""A table `[[task]]` of a study file as a task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._study_fields import Fields, refuse_unknown
from scvi_perturb.benchmark._study_files import (
    FeatureFiles,
    ScreenFile,
    content_hash,
    read_annotations,
)
from scvi_perturb.benchmark._task import Task
from scvi_perturb.data import ConditionKeys, SplitOptions
from scvi_perturb.data._keys import as_labels, default_keys
from scvi_perturb.data._split_kinds import HOLD_OUT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

__all__ = ["read_task"]

_ROLES: Final = {
    "perturbation_key": "perturbation",
    "dose_key": "dose",
    "time_key": "time",
    "perturbation_type_key": "kind",
}
_KEYS: Final = (
    *("name", "title", "note", "file", "split", "values", "layer", "n_folds", "hold_out"),
    *(*_ROLES, "control", "separator", "context_keys", "features", "max_cells"),
    *("shown", "groups", "gene_names"),
)
_FEATURES: Final = ("gene_sets", "table", "smiles")
_IN_CONTEXTS: Final = ("unseen_context", "context_transfer")


def read_task(table: dict[str, Any], *, where: str, folder: Path) -> Task:
    """Return the task that a table describes; its screen's annotation is read, not its values.

    Raises
    ------
    SchemaError
        If a key is unknown, missing or of the wrong type, a file is not there, or the screen does
        not have what a key names.
    """
    fields = Fields(table, where=where, folder=folder, known=_KEYS)
    name = fields.name("task")
    fields.where = f"{where} {name!r}"
    path = fields.file("file")
    adata, layers = read_annotations(path)
    layer = fields.text("layer", None)
    if layer is not None:
        refuse_unknown([layer], layers, where=f"{fields.where}, {path.name}", what="layer")
    values = fields.choice("values", ("counts", "effects"), "counts")
    kind = fields.choice("split", ("cells", *HOLD_OUT))
    keys = _keys(fields, adata, values)
    contexts = fields.texts("context_keys", ())
    for column in contexts:
        _check_column(fields, adata, "context_keys", column)
    if kind in _IN_CONTEXTS and not contexts:
        fields.refuse("context_keys", f"columns of obs, such as cell type, for {kind!r}")
    if kind == "dose" and keys.dose is None:
        fields.refuse("dose_key", "the column of doses")
    return Task(
        name=name,
        title=fields.text("title", ""),
        note=fields.text("note", ""),
        load=ScreenFile(path, content_hash(path), layer, values == "counts"),
        kind=kind,
        keys=keys,
        context_keys=contexts,
        layer=layer,
        values=values,
        n_folds=fields.whole("n_folds", 5),
        options=_options(fields, adata, kind, keys),
        fold_options=_folds(fields, adata, kind, contexts),
        gene_names=_gene_names(fields, adata),
        features=_features(fields, adata, keys),
        max_cells=fields.whole("max_cells", 1000, least=4),
    )


def _keys(fields: Fields, adata: AnnData, values: str) -> ConditionKeys:
    """Return where the screen says what was done: as named, or as `pp.harmonize` writes it."""
    given = {role: fields.text(key) for key, role in _ROLES.items() if key in fields}
    for key, role in _ROLES.items():
        if role in given:
            _check_column(fields, adata, key, given[role])
    given |= {key: fields.text(key) for key in ("control", "separator") if key in fields}
    if "perturbation" in given:
        keys = ConditionKeys(**given)
    else:
        try:
            keys = replace(default_keys(adata), **given)
        except SchemaError as error:
            msg = f"{fields.where}: {error} Or name it: perturbation_key = COLUMN."
            raise SchemaError(msg) from None
    labels = set(as_labels(adata.obs[keys.perturbation]).tolist()) - {None}
    if values == "counts" and keys.control not in labels:
        column = f"{fields.where}, column {keys.perturbation!r}"
        some = ", ".join(adata.obs[keys.perturbation].value_counts().index[:5].astype(str))
        msg = f"{column}: no cell is {keys.control!r}; name the control: control = LABEL. "
        raise SchemaError(msg + f"Most frequent are {some}.")
    return keys


def _options(fields: Fields, adata: AnnData, kind: str, keys: ConditionKeys) -> SplitOptions:
    """Return what all folds have in common."""
    shown = fields.share("shown", 0.0)
    if shown and kind != "context_transfer":
        fields.refuse("shown", "no such key but for 'context_transfer'")
    column = fields.text("groups", None)
    if column is None:
        return SplitOptions(shown=shown)
    if kind != "unseen_perturbation" or "hold_out" in fields:
        fields.refuse("groups", "no such key but for 'unseen_perturbation' without hold_out")
    _check_column(fields, adata, "groups", column)
    treated = adata.obs[adata.obs[keys.perturbation].astype(str) != keys.control]
    pairs = treated[[keys.perturbation, column]].astype(str).drop_duplicates()
    twice = pairs[keys.perturbation][pairs[keys.perturbation].duplicated()].unique().tolist()
    if twice:
        fields.refuse("groups", f"a column with one label a perturbation; {twice[:3]} have several")
    return SplitOptions(groups=pairs.set_index(keys.perturbation)[column])


def _gene_names(fields: Fields, adata: AnnData) -> str | None:
    column: str | None = fields.text("gene_names", None)
    if column is not None:
        columns = [str(name) for name in adata.var]
        where = f"{fields.where}, gene_names"
        refuse_unknown([column], columns, where=where, what="column of var")
    return column


def _folds(
    fields: Fields, adata: AnnData, kind: str, contexts: Sequence[str]
) -> tuple[SplitOptions, ...]:
    """Return what each fold holds out, where it is named."""
    named = fields.items("hold_out")
    if not named:
        return ()
    if kind in _IN_CONTEXTS:
        return tuple(SplitOptions(context=_context(fields, adata, contexts, x)) for x in named)
    if any(not isinstance(label, str) for label in named):
        fields.refuse("hold_out", "a list of texts for this kind of split")
    if kind == "dose":
        refuse_unknown(named, ("inner", "top"), where=fields.where, what="hold_out")
        return tuple(SplitOptions(dose=label) for label in named)
    if kind == "cells":
        fields.refuse("hold_out", "no such key for 'cells', which holds out a share of all cells")
    return (SplitOptions(held_out=tuple(named)),)


def _context(
    fields: Fields, adata: AnnData, contexts: Sequence[str], named: str | dict[str, str]
) -> dict[str, str]:
    """Return the labels of a context that is to be held out."""
    if isinstance(named, str):
        if len(contexts) > 1:
            fields.refuse(
                "hold_out", f"tables, as there are several keys: {{ {contexts[0]} = ... }}"
            )
        named = {contexts[0]: named}
    refuse_unknown(named, contexts, where=f"{fields.where}, hold_out", what="context key")
    for column, label in named.items():
        known = [one for one in set(as_labels(adata.obs[column]).tolist()) if one is not None]
        refuse_unknown([str(label)], known, where=fields.where, what=f"hold_out in {column!r}")
    return {column: str(label) for column, label in named.items()}


def _features(fields: Fields, adata: AnnData, keys: ConditionKeys) -> FeatureFiles | None:
    table = fields.table("features")
    if not table:
        return None
    sources = Fields(
        table, where=f"{fields.where}, features", folder=fields.folder, known=_FEATURES
    )
    sets = sources.files("gene_sets")
    rows = sources.file("table") if "table" in sources else None
    smiles = sources.text("smiles", None)
    if smiles is not None:
        _check_column(sources, adata, "smiles", smiles)
    content = " ".join(content_hash(path) for path in (*sets, *([rows] if rows else [])))
    return FeatureFiles(keys, sets, rows, smiles, content)


def _check_column(fields: Fields, adata: AnnData, key: str, column: str) -> None:
    columns = [str(name) for name in adata.obs]
    refuse_unknown([column], columns, where=f"{fields.where}, {key}", what="column of obs")
