"""The training cells of a screen, summed up: one profile for each condition in each context."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb._errors import SchemaError
from scvi_perturb._normalize import log_normalize_cells
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cells import read_chunks, seen_cells
from scvi_perturb.predictors._moments import Moments
from scvi_perturb.predictors._requests import context_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split
    from scvi_perturb.predictors._requests import Context

__all__ = ["PROFILES", "Profile", "TrainingProfiles", "agrees"]

#: "pseudobulk": `log1p` of the summed counts; "cell_mean": mean over cells of their `log1p`;
#: "effects": rows are changes from control already, and are averaged as they are.
Profile = Literal["pseudobulk", "cell_mean", "effects"]

PROFILES: Final = ("pseudobulk", "cell_mean", "effects")


@dataclass(frozen=True)
class TrainingProfiles:
    """Sums over the cells of each group, a group being a condition in a context.

    Parameters
    ----------
    keys, context_keys, layer
        Where the screen says what was done, to which cells, and holds its counts.
    var_names
        Genes, in the order of all arrays.
    kind
        What a profile is.
    conditions, contexts
        Of each group.
    n_cells
        Number of cells of each group, `(n_groups,)`.
    sums
        Sum over the cells of each group of counts ("pseudobulk"), of log-normalised values
        ("cell_mean") or of changes ("effects"), `(n_groups, n_genes)`.
    variances
        Sampling variance of each group's profile, `(n_groups, n_genes)`; None where they were not
        asked for, or are not known.
    libraries
        Sum of the library sizes of each group, `(n_groups,)`, where these are more than the counts
        of the genes that are there; None where they are the sums of these.
    """

    keys: ConditionKeys
    context_keys: tuple[str, ...]
    layer: str | None
    var_names: pd.Index
    kind: Profile
    conditions: tuple[Condition, ...]
    contexts: tuple[Context, ...]
    n_cells: NDArray[np.int64]
    sums: NDArray[np.float64]
    variances: NDArray[np.float64] | None = None
    libraries: NDArray[np.float64] | None = None

    @classmethod
    def from_screen(
        cls,
        adata: AnnData,
        split: Split | None,
        *,
        keys: ConditionKeys,
        context_keys: Sequence[str],
        layer: str | None,
        kind: Profile,
        with_variances: bool = False,
        library: NDArray[np.float64] | None = None,
    ) -> TrainingProfiles:
        """Sum up the cells that may be seen; memory does not grow with their number.

        `library` are the library sizes of all cells, for pseudobulk of files with some genes only.

        Raises
        ------
        SchemaError
            If a column is absent, a context is missing, counts are not raw or changes not finite,
            or there is no control (of counts; changes need none).
        """
        cells = seen_cells(adata, split)
        obs = adata.obs.iloc[cells]
        codes, table = encode_obs(obs, keys, require_control=kind != "effects")
        contexts = _cell_contexts(obs, context_keys)
        context_names = sorted(set(contexts), key=str)
        place = {context: i for i, context in enumerate(context_names)}
        context_codes = np.array([place[context] for context in contexts])
        pairs, group = np.unique(codes * len(context_names) + context_codes, return_inverse=True)
        sums = np.zeros((len(pairs), adata.n_vars))
        n_cells = np.bincount(group, minlength=len(pairs))
        totals = None
        if library is not None:
            totals = np.zeros(len(pairs))
            np.add.at(totals, group, library[cells])
        moments = None
        if with_variances and kind != "effects":
            moments = Moments.empty(sums.shape, per_cell=kind == "cell_mean")
        for part, rows in read_chunks(adata, layer, cells, effects=kind == "effects"):
            sums += _group_sums(rows, group[part], len(pairs), kind)
            if moments is not None:
                moments.add(rows, group[part], None if library is None else library[cells[part]])
        return cls(
            keys=keys,
            context_keys=tuple(context_keys),
            layer=layer,
            var_names=pd.Index(adata.var_names.astype(str)),
            kind=kind,
            conditions=tuple(table.conditions[pair // len(context_names)] for pair in pairs),
            contexts=tuple(context_names[pair % len(context_names)] for pair in pairs),
            n_cells=n_cells,
            sums=sums,
            variances=None if moments is None else moments.variances(sums, n_cells, totals),
            libraries=totals,
        )

    def without(self, left_out: Iterable[int]) -> TrainingProfiles:
        """Return the profiles of all but some groups."""
        kept = np.setdiff1d(np.arange(len(self.conditions)), list(left_out))
        return replace(
            self,
            conditions=tuple(self.conditions[i] for i in kept),
            contexts=tuple(self.contexts[i] for i in kept),
            n_cells=self.n_cells[kept],
            sums=self.sums[kept],
            variances=None if self.variances is None else self.variances[kept],
            libraries=None if self.libraries is None else self.libraries[kept],
        )

    def profile(self, groups: Iterable[int]) -> NDArray[np.float64]:
        """Return the profile of the cells of all `groups` together, `(n_genes,)`."""
        chosen = list(groups)
        total = None if self.libraries is None else float(self.libraries[chosen].sum())
        n_cells = int(self.n_cells[chosen].sum())
        return _profile(self.sums[chosen].sum(axis=0), n_cells, self.kind, total)

    def profile_of(
        self,
        counts: Any,  # noqa: ANN401
        library: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the profile of other cells, given as counts `(n, n_genes)`."""
        sums = _group_sums(counts, np.zeros(counts.shape[0], np.int64), 1, self.kind)[0]
        total = None if library is None else float(library.sum())
        return _profile(sums, counts.shape[0], self.kind, total)

    def controls(self, context: Context) -> list[int]:
        """Return the control groups whose context agrees with what `context` says."""
        return [
            i
            for i, (condition, own) in enumerate(zip(self.conditions, self.contexts, strict=True))
            if condition.is_control and agrees(context, own)
        ]

    def control_profile(self, context: Context) -> NDArray[np.float64]:
        """Return the profile of the training controls of a context, `(n_genes,)`.

        That of "effects" is zero: the change of a control from itself.

        Raises
        ------
        SchemaError
            If there are none.
        """
        if self.kind == "effects":
            return np.zeros(len(self.var_names))
        groups = self.controls(context)
        if not groups:
            known = sorted(
                {self.contexts[i] for i in self.controls((None,) * len(context))}, key=str
            )
            msg = (
                f"No training control has context {context}; there are {known}. Pass control "
                "cells of this context as `reference`."
            )
            raise SchemaError(msg)
        return self.profile(groups)

    @property
    def are_shares(self) -> bool:
        """Whether profiles sum to ten thousand; means over cells, effects and panels do not."""
        return self.kind == "pseudobulk" and self.libraries is None

    @cached_property
    def deltas(self) -> dict[Condition, dict[Context, NDArray[np.float64]]]:
        """The change from the control of the same context, of each treated group.

        Arrays `(n_genes,)` by condition, then context. Contexts without controls are left out, of
        which a warning tells. "effects" are changes already: rows of controls change nothing.
        """
        groups = list(enumerate(zip(self.conditions, self.contexts, strict=True)))
        if self.kind == "effects":
            controls = {own: self.control_profile(own) for own in self.contexts}
        else:
            controls = {own: self.profile([i]) for i, (what, own) in groups if what.is_control}
        found: dict[Condition, dict[Context, NDArray[np.float64]]] = {}
        for i, (what, own) in groups:
            if own in controls and not what.is_control:
                found.setdefault(what, {})[own] = self.profile([i]) - controls[own]
        lonely = sorted(set(self.contexts) - set(controls), key=str)
        if lonely:
            warnings.warn(
                f"Contexts {lonely} have perturbed cells but no control cell in training; their "
                "cells are not used, since their change from control is unknown.",
                UserWarning,
                stacklevel=5,
            )
        return found

    def known_names(self) -> list[str]:
        """Return the labels of all treated training conditions."""
        keys = self.keys
        return sorted(
            {c.format(keys.control, keys.separator) for c in self.conditions if not c.is_control}
        )


def agrees(asked: Context, own: Context) -> bool:
    """Whether a context is what was asked for, where something was said."""
    return all(a is None or a == b for a, b in zip(asked, own, strict=True))


def _group_sums(
    counts: Any,  # noqa: ANN401
    group: NDArray[np.int64],
    n_groups: int,
    kind: Profile,
) -> NDArray[np.float64]:
    values = log_normalize_cells(counts) if kind == "cell_mean" else counts
    n_cells = len(group)
    member = sparse.csr_matrix((np.ones(n_cells), (group, np.arange(n_cells))), (n_groups, n_cells))
    sums = member @ values
    return np.asarray(sums.toarray() if sparse.issparse(sums) else sums, dtype=np.float64)


def _profile(
    sums: NDArray[np.float64], n_cells: int, kind: Profile, total: float | None
) -> NDArray[np.float64]:
    if kind != "pseudobulk":
        return sums / n_cells
    return np.log1p(TARGET_SUM * sums / max(sums.sum() if total is None else total, 1.0))


def _cell_contexts(obs: pd.DataFrame, context_keys: Sequence[str]) -> list[Context]:
    absent = sorted(set(context_keys) - set(obs.columns))
    if absent:
        msg = f"obs has no column {absent[0]!r}; it has {sorted(map(str, obs.columns))}."
        raise SchemaError(msg)
    missing = [key for key in context_keys if obs[key].isna().any()]
    if missing:
        n_missing = int(obs[missing[0]].isna().sum())
        msg = f"obs[{missing[0]!r}] is missing for {n_missing} cells; label or drop them."
        raise SchemaError(msg)
    return context_labels(obs, context_keys)
