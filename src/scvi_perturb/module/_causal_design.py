"""What a model of latent groups must know of a screen: metadata, pairs, edited genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.module._conditions import ConditionTensors
    from scvi_perturb.nn import MetadataSpec

__all__ = ["CausalDesign"]


@dataclass(frozen=True, slots=True)
class CausalDesign:
    """A screen as the module sees it.

    Attributes
    ----------
    n_genes
        Genes of the data.
    conditions
        Conditions by code.
    identity, technical
        Columns of metadata of each group; first those of contexts and batches.
    context_levels, batch_levels
        Level of each column by code of context and batch, `(n_codes, n_columns)`.
    n_components
        Number of component ids.
    pairs
        Ids of components measured together.
    label
        Perturbation, whatever its dose and time, of each condition, `(n_conditions,)`.
    n_labels
        Number of perturbations.
    target
        Place among the genes of the gene that each component edits, -1 for none, `(n_components,)`.
    kind
        Kind of each component, `(n_components,)`.
    partial_panel
        Whether library sizes count genes that the data do not hold.
    real_values
        Whether the data are real values as they are, and not counts.
    """

    n_genes: int
    conditions: ConditionTensors
    identity: tuple[MetadataSpec, ...]
    technical: tuple[MetadataSpec, ...]
    context_levels: Tensor
    batch_levels: Tensor
    n_components: int
    pairs: tuple[tuple[int, int], ...]
    label: Tensor
    n_labels: int
    target: Tensor
    kind: Tensor
    partial_panel: bool = False
    real_values: bool = False
