"""The design of a screen as the module of latent groups takes it."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_perturb.model._vocabulary import to_tensors
from scvi_perturb.module import CausalDesign
from scvi_perturb.nn import MetadataSpec

if TYPE_CHECKING:
    from scvi_perturb.model._screen import Screen
    from scvi_perturb.model._vocabulary import Vocabulary

__all__ = ["labels_of", "make_design"]


def make_design(screen: Screen, vocabulary: Vocabulary) -> CausalDesign:
    """Return the design of a screen."""
    table = screen.table
    contexts, context_levels = _columns(screen.context_columns, screen.contexts)
    batch = () if screen.batch_column is None else (screen.batch_column,)
    batches, batch_levels = _columns(batch, screen.batches)
    further = {group: [] for group in ("identity", "technical")}  # type: dict[str, list[MetadataSpec]]
    for column in screen.metadata:
        n_levels = 0 if column.levels is None else len(column.levels)
        further[column.group].append(MetadataSpec(column.name, n_levels))
    genes = {gene: i for i, gene in enumerate(screen.genes)}
    kinds = {kind: i for i, kind in enumerate(sorted({kind for _, kind in table.components}))}
    pairs = {
        pair
        for condition in table.conditions
        for pair in combinations(
            sorted(table.component_index(p.name, p.kind) for p in condition.components), 2
        )
    }
    labels, label = labels_of(screen)
    return CausalDesign(
        n_genes=len(screen.genes),
        conditions=to_tensors(table.arrays()),
        identity=(*contexts, *further["identity"]),
        technical=(*batches, *further["technical"]),
        context_levels=context_levels,
        batch_levels=batch_levels,
        n_components=len(vocabulary.names),
        pairs=tuple(sorted(pairs)),
        label=torch.from_numpy(label),
        n_labels=len(labels),
        target=torch.tensor([genes.get(name, -1) for name in vocabulary.names], dtype=torch.long),
        kind=torch.tensor([kinds[kind] for _, kind in table.components], dtype=torch.long),
        partial_panel=screen.library_key is not None,
        real_values=screen.real_values,
    )


def labels_of(screen: Screen) -> tuple[list[str], np.ndarray]:
    """Return the perturbations of a screen, at whatever dose and time, and that of each code."""
    names = screen.table.frame()["perturbation"].astype(str)
    labels, label = np.unique(names.to_numpy(), return_inverse=True)
    return labels.tolist(), label.astype(np.int64)


def _columns(
    names: tuple[str, ...], rows: tuple[tuple[str, ...], ...]
) -> tuple[tuple[MetadataSpec, ...], torch.Tensor]:
    """Return one column of metadata each, and the level of each code, `(n_codes, n_columns)`."""
    levels = [sorted({row[i] for row in rows}) for i in range(len(names))]
    specs = tuple(MetadataSpec(n, len(own)) for n, own in zip(names, levels, strict=True))
    places = [[own.index(row[i]) for i, own in enumerate(levels)] for row in rows]
    return specs, torch.tensor(places, dtype=torch.long).reshape(len(rows), len(names))
