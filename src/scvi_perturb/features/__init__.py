"""What is known about a perturbation before it is measured."""

from __future__ import annotations

from scvi_perturb.features._clusters import cluster_perturbations
from scvi_perturb.features._descriptors import molecular_descriptors
from scvi_perturb.features._fingerprints import molecular_fingerprints
from scvi_perturb.features._genes import gene_set_membership
from scvi_perturb.features._gmt import read_gmt
from scvi_perturb.features._molecules import morgan_fingerprints, murcko_scaffolds
from scvi_perturb.features._store import PerturbationFeatures

__all__ = [
    "PerturbationFeatures",
    "cluster_perturbations",
    "gene_set_membership",
    "molecular_descriptors",
    "molecular_fingerprints",
    "morgan_fingerprints",
    "murcko_scaffolds",
    "read_gmt",
]
