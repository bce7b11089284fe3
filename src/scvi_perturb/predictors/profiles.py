"""Pseudobulk profiles of training conditions, with their sampling variance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._core import (
    TARGET_SUM,
    SchemaError,
    add_by_group,
    log_normalize_cells,
    warn,
)
from scvi_perturb.data.condition import Condition, row_codes
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.request import agrees
from scvi_perturb.predictors.request import context_labels, read_chunks, seen_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Component, ScreenKeys
    from scvi_perturb.data.request import Context
    from scvi_perturb.data.split.record import Split

    Floats = NDArray[np.float64]
    ByContext: TypeAlias = Mapping[Context, NDArray[np.float64]]
    Deltas: TypeAlias = Mapping[Condition, ByContext]


def proportions(profiles: NDArray[np.floating[Any]]) -> Floats:
    """Return the proportions of `log1p` profiles, `(..., n_genes)`, each summing to 1."""
    raw = np.maximum(np.expm1(profiles.astype(np.float64)), 0.0)
    made: Floats = raw / np.maximum(raw.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return made


def renormalized(changes: Floats, controls: Floats) -> Floats:
    """Scale what changes lead to so that its counts sum to ten thousand again.

    Changes of logarithms, added up or drawn to their mean, lead to shares that do not sum to one,
    and all genes are off by the same factor.

    `changes`, `controls`: Change, and the profile that it leads from, `log1p` of counts per ten
    thousand of their sum, `(n_requests, n_genes)`.

    Reference: Aitchison, The statistical analysis of compositional data, 1986.
    """
    made: Floats = np.log1p(TARGET_SUM * proportions(controls + changes)) - controls
    made[~changes.any(axis=1)] = 0.0  # no change is none, to the last digit
    return made


@dataclass(slots=True)
class Moments:
    """Second moments of the cells of each group, added up chunk by chunk.

    `squares`: Sums of squares: of counts, or of log-normalised values, `(n_groups, n_genes)`.
    `products`: Sums of counts times library size; None where profiles are means over cells.
    `libraries`: Sums of squared library sizes, `(n_groups,)`.
    """

    squares: Floats
    products: Floats | None
    libraries: Floats

    @classmethod
    def empty(cls, shape: tuple[int, int], *, per_cell: bool) -> Self:
        """Return moments of no cells; `per_cell` where a profile is the mean over cells."""
        products = None if per_cell else np.zeros(shape)
        return cls(np.zeros(shape), products, np.zeros(shape[0]))

    def add(
        self,
        rows: Any,  # noqa: ANN401
        group: NDArray[np.int64],
        library: Floats | None = None,
    ) -> None:
        """Add cells, raw counts `(n, n_genes)`, of groups `(n,)`; None sums them to libraries."""
        if self.products is None:
            add_by_group(self.squares, group, _square(log_normalize_cells(rows)))
            return
        if library is None:
            library = np.asarray(rows.sum(axis=1), np.float64).ravel()
        add_by_group(self.squares, group, _square(rows))
        self.libraries += np.bincount(group, library**2, minlength=len(self.libraries))
        add_by_group(self.products, group, rows, weight=library)

    def variances(
        self, sums: Floats, n_cells: NDArray[np.int64], totals: Floats | None = None
    ) -> NDArray[np.float32] | None:
        """Return the sampling variance of the profile of each group.

        Of a mean over cells it is the variance over cells by their number. Of a pseudobulk,
        `b = log1p(t p)` with `p` the share of a gene in all counts, it is that of the linear
        influence of each cell, `t (x - p l) / (1 + t p)` by the sum of all `l`, where `x` is its
        count and `l` its library: the jackknife to first order, from sums over cells alone. A group
        of one cell gets the mean variance of a cell over the other groups.

        `sums`: Of each group, `(n_groups, n_genes)`. `n_cells`: Of each group, `(n_groups,)`.
        `totals`: Sum of the library sizes of each group, `(n_groups,)`; None takes the sums of
        counts. Returns `(n_groups, n_genes)`, squared units of the profile; None if no group has
        two cells, so that nothing is known.

        Reference: Efron and Stein, The jackknife estimate of variance, Annals of Statistics 1981.
        """
        if n_cells.max(initial=0) < 2:
            return None
        total = sums.sum(axis=1) if totals is None else totals
        made: NDArray[np.float32] = np.empty(sums.shape, np.float32)
        of_a_cell = np.zeros(sums.shape[1])
        enough = n_cells >= 2
        for rows in np.array_split(np.arange(len(sums)), -(-len(sums) // _ROWS)):
            n = n_cells[rows].astype(np.float64)[:, None]
            found = self._spread(rows, sums[rows], n, total[rows]) * (n / np.maximum(n - 1, 1))
            of_a_cell += (found * n)[enough[rows]].sum(axis=0)
            made[rows] = found
        made[~enough] = of_a_cell / enough.sum() / n_cells[~enough, None]
        return made

    def _spread(self, rows: NDArray[np.intp], sums: Floats, n: Floats, totals: Floats) -> Floats:
        """Return the variance of some groups' profiles, not yet divided by what one mean costs."""
        if self.products is None:
            return np.maximum(self.squares[rows] - sums**2 / n, 0.0) * (1 / n**2)
        total = np.maximum(totals, 1.0)[:, None]
        share = sums / total
        spread = self.squares[rows] - 2 * share * self.products[rows]
        spread += share**2 * self.libraries[rows, None]
        made: Floats = np.maximum(spread, 0.0)
        made *= (TARGET_SUM / (1 + TARGET_SUM * share) / total) ** 2
        return made


def _square(values: Any) -> Any:  # noqa: ANN401
    if sparse.issparse(values):
        return values.astype(np.float64).power(2)
    return np.asarray(values, np.float64) ** 2


#: Rows of a table that are worked on together.
_ROWS: Final = 256

#: "pseudobulk": `log1p` of the summed counts; "cell_mean": mean over cells of their `log1p`;
#: "effects": rows are changes from control already, and are averaged as they are.
Profile = Literal["pseudobulk", "cell_mean", "effects"]

PROFILES: Final = ("pseudobulk", "cell_mean", "effects")


@dataclass(frozen=True)
class TrainingProfiles:
    """Sums over the cells of each group, a group being a condition in a context.

    `keys`: Where the screen says what was done, to which cells, and holds its counts. `var_names`:
    Genes, in the order of all arrays. `kind`: What a profile is. `conditions`, `contexts`: Of each
    group. `known`: Conditions of the whole screen, held-out ones included, by which requests are
    read. `n_cells`: Number of cells of each group, `(n_groups,)`. `libraries`: Sum of the library
    sizes of each group, `(n_groups,)`, where these are more than the counts of the genes that are
    there; None where they are the sums of these. `all_sums`, `all_variances`: The tables behind
    `sums` and `variances`. `places`: Row of the tables of each group, `(n_groups,)`; None where
    these are all rows. Profiles without some groups share the tables.
    """

    keys: ScreenKeys
    var_names: pd.Index
    kind: Profile
    conditions: tuple[Condition, ...]
    contexts: tuple[Context, ...]
    known: tuple[Condition, ...]
    n_cells: NDArray[np.int64]
    libraries: NDArray[np.float64] | None
    all_sums: NDArray[np.float64]
    all_variances: NDArray[np.float32] | None = None
    places: NDArray[np.intp] | None = None

    @property
    def sums(self) -> NDArray[np.float64]:
        """Sum over the cells of each group, `(n_groups, n_genes)`.

        Of counts ("pseudobulk"), of log-normalised values ("cell_mean") or of changes ("effects").
        """
        return self.all_sums if self.places is None else self.all_sums[self.places]

    @property
    def variances(self) -> NDArray[np.float32] | None:
        """Sampling variance of each group's profile, `(n_groups, n_genes)`.

        None where they were not asked for, or are not known.
        """
        if self.all_variances is None or self.places is None:
            return self.all_variances
        return self.all_variances[self.places]

    @classmethod
    def from_screen(
        cls,
        adata: AnnData,
        split: Split | None,
        *,
        keys: ScreenKeys,
        kind: Profile,
        with_variances: bool = False,
        library: NDArray[np.float64] | None = None,
    ) -> TrainingProfiles:
        """Sum up the cells that may be seen; memory does not grow with their number.

        `library` are the library sizes of all cells, for pseudobulk of files with some genes only.

        Raises `SchemaError`: If a column is absent, a context is missing, counts are not raw or
        changes not finite, or there is no control (of counts; changes need none).
        """
        cells = seen_cells(adata, split)
        obs = adata.obs.iloc[cells]
        codes, table = encode_obs(obs, keys, require_control=kind != "effects")
        context_names, context_codes = _cell_contexts(obs, keys.context)
        pairs, group = np.unique(codes * len(context_names) + context_codes, return_inverse=True)
        sums = np.zeros((len(pairs), adata.n_vars))
        n_cells = np.bincount(group, minlength=len(pairs))
        totals: Floats | None = None
        if library is not None:
            totals = np.asarray(np.bincount(group, library[cells], len(pairs)), np.float64)
        moments = None
        if with_variances and kind != "effects":
            moments = Moments.empty(sums.shape, per_cell=kind == "cell_mean")
        for part, rows in read_chunks(adata, keys.layer, cells, effects=kind == "effects"):
            add_by_group(sums, group[part], _summed(rows, kind))
            if moments is not None:
                moments.add(rows, group[part], None if library is None else library[cells[part]])
        return cls(
            keys=keys,
            var_names=pd.Index(adata.var_names.astype(str)),
            kind=kind,
            conditions=tuple(table.conditions[pair // len(context_names)] for pair in pairs),
            contexts=tuple(context_names[pair % len(context_names)] for pair in pairs),
            known=encode_obs(adata.obs, keys)[1].conditions,
            n_cells=n_cells,
            libraries=totals,
            all_sums=sums,
            all_variances=None if moments is None else moments.variances(sums, n_cells, totals),
        )

    def without(self, left_out: Iterable[int]) -> TrainingProfiles:
        """Return the profiles of all but some groups; tables and changes are shared."""
        kept = np.setdiff1d(np.arange(len(self.conditions)), list(left_out))
        made = replace(
            self,
            conditions=tuple(self.conditions[i] for i in kept),
            contexts=tuple(self.contexts[i] for i in kept),
            n_cells=self.n_cells[kept],
            libraries=None if self.libraries is None else self.libraries[kept],
            places=kept if self.places is None else self.places[kept],
        )
        if len(made.control_groups) == len(self.control_groups):
            there = set(zip(made.conditions, made.contexts, strict=True))
            kept_ones = (
                (what, {own: change for own, change in seen.items() if (what, own) in there})
                for what, seen in self.deltas.items()
            )
            vars(made)["deltas"] = {what: seen for what, seen in kept_ones if seen}
        return made

    def profile(self, groups: Iterable[int]) -> NDArray[np.float64]:
        """Return the profile of the cells of all `groups` together, `(n_genes,)`."""
        chosen = list(groups)
        total = None if self.libraries is None else float(self.libraries[chosen].sum())
        n_cells = int(self.n_cells[chosen].sum())
        rows = chosen if self.places is None else self.places[chosen]
        return _profile(self.all_sums[rows].sum(axis=0), n_cells, self.kind, total)

    def profile_of(
        self,
        counts: Any,  # noqa: ANN401
        library: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the profile of other cells, given as counts `(n, n_genes)`."""
        sums = np.zeros((1, counts.shape[1]))
        add_by_group(sums, np.zeros(counts.shape[0], np.int64), _summed(counts, self.kind))
        total = None if library is None else float(library.sum())
        return _profile(sums[0], counts.shape[0], self.kind, total)

    @cached_property
    def control_groups(self) -> dict[Context, int]:
        """The group of the controls of each context that has some."""
        groups = enumerate(zip(self.conditions, self.contexts, strict=True))
        return {own: i for i, (what, own) in groups if what.is_control}

    def controls(self, context: Context) -> list[int]:
        """Return the control groups whose context agrees with what `context` says."""
        return [i for own, i in self.control_groups.items() if agrees(context, own)]

    def control_profile(self, context: Context) -> NDArray[np.float64]:
        """Return the profile of the training controls of a context, `(n_genes,)`.

        That of "effects" is zero: the change of a control from itself.

        Raises `SchemaError`: If there are none.
        """
        if self.kind == "effects":
            return np.zeros(len(self.var_names))
        groups = self.controls(context)
        if not groups:
            known = sorted(self.control_groups, key=str)
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
            controls = {own: self.profile([i]) for own, i in self.control_groups.items()}
        found: dict[Condition, dict[Context, NDArray[np.float64]]] = {}
        for i, (what, own) in groups:
            if own in controls and not what.is_control:
                found.setdefault(what, {})[own] = self.profile([i]) - controls[own]
        lonely = sorted(set(self.contexts) - set(controls), key=str)
        if lonely:
            warn(
                f"Contexts {lonely} have perturbed cells but no control cell in training; their "
                "cells are not used, since their change from control is unknown."
            )
        return found

    def mean_change(self, context: Context) -> NDArray[np.float64]:
        """Return the mean change of all conditions in a context, each counted once, `(n_genes,)`.

        Raises `SchemaError`: If no perturbation was measured there.
        """
        if context not in self._mean_changes:
            total, n = np.zeros(len(self.var_names)), 0
            for seen in self.deltas.values():
                for change in measured_here(seen, context):
                    total += change
                    n += 1
            if not n:
                msg = (
                    f"No perturbation was measured in context {context}; use "
                    "`ContextMean('contexts')` for contexts of which only controls were seen."
                )
                raise SchemaError(msg)
            self._mean_changes[context] = total / n
        return self._mean_changes[context]

    @cached_property
    def _mean_changes(self) -> dict[Context, NDArray[np.float64]]:
        """Those that were asked for."""
        return {}

    def known_names(self) -> list[str]:
        """Return the labels of all treated training conditions."""
        keys = self.keys
        return sorted(
            {c.format(keys.control, keys.separator) for c in self.conditions if not c.is_control}
        )


def _summed(counts: Any, kind: Profile) -> Any:  # noqa: ANN401
    """Return what a profile is the sum of."""
    return log_normalize_cells(counts) if kind == "cell_mean" else counts


def _profile(
    sums: NDArray[np.float64], n_cells: int, kind: Profile, total: float | None
) -> NDArray[np.float64]:
    if kind != "pseudobulk":
        return sums / n_cells
    return np.log1p(TARGET_SUM * sums / max(sums.sum() if total is None else total, 1.0))


def _cell_contexts(
    obs: pd.DataFrame, context_keys: Sequence[str]
) -> tuple[list[Context], NDArray[np.int64]]:
    """Return the contexts in order, and which of them each cell has."""
    absent = sorted(set(context_keys) - set(obs.columns))
    if absent:
        msg = f"obs has no column {absent[0]!r}; it has {sorted(map(str, obs.columns))}."
        raise SchemaError(msg)
    missing = [key for key in context_keys if obs[key].isna().any()]
    if missing:
        n_missing = int(obs[missing[0]].isna().sum())
        msg = f"obs[{missing[0]!r}] is missing for {n_missing} cells; label or drop them."
        raise SchemaError(msg)
    first, inverse = row_codes(obs, context_keys)
    found = context_labels(obs.iloc[first], context_keys)
    names = sorted(set(found), key=str)
    place = {context: i for i, context in enumerate(names)}
    return names, np.array([place[context] for context in found], np.int64)[inverse]


def measured_alone(deltas: Deltas, component: Component, time: float | None) -> ByContext:
    """Return the changes of a component alone at this dose and time; empty if never measured."""
    return deltas.get(Condition((component,), time=time), {})


def measured_here(seen: ByContext, context: Context) -> list[NDArray[np.float64]]:
    """Return the changes whose context is what was asked for, where something was said."""
    return [delta for own, delta in seen.items() if agrees(context, own)]


def here_or_mean(seen: ByContext, context: Context) -> NDArray[np.float64]:
    """Return the change in the context; where it was not measured there, the mean over others."""
    return np.mean(measured_here(seen, context) or list(seen.values()), axis=0)


def names_of_singles(deltas: Deltas) -> list[str]:
    """Return the labels of the conditions of one component."""
    return [str(condition) for condition in deltas if len(condition.components) == 1]
