"""Features of perturbations: prior knowledge about genes and molecules."""

from scvi_perturb.features.clusters import cluster_perturbations
from scvi_perturb.features.genes import gene_set_membership, read_gmt
from scvi_perturb.features.molecules import (
    molecular_descriptors,
    molecular_fingerprints,
    murcko_scaffolds,
)
from scvi_perturb.features.store import PerturbationFeatures

__all__ = [
    "PerturbationFeatures",
    "cluster_perturbations",
    "gene_set_membership",
    "molecular_descriptors",
    "molecular_fingerprints",
    "murcko_scaffolds",
    "read_gmt",
]
