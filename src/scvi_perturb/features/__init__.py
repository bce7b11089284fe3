"""Features of perturbations: prior knowledge about genes and molecules."""

from scvi_perturb.features.clusters import cluster_perturbations
from scvi_perturb.features.genes import gene_set_membership, read_gmt
from scvi_perturb.features.molecules import (
    molecular_descriptors,
    molecular_fingerprints,
    murcko_scaffolds,
)
from scvi_perturb.features.networks import network_embedding, target_features
from scvi_perturb.features.signatures import from_signatures
from scvi_perturb.features.sources import rename_genes
from scvi_perturb.features.store import PerturbationFeatures
from scvi_perturb.features.text import text_features

__all__ = [
    "PerturbationFeatures",
    "cluster_perturbations",
    "from_signatures",
    "gene_set_membership",
    "molecular_descriptors",
    "molecular_fingerprints",
    "murcko_scaffolds",
    "network_embedding",
    "read_gmt",
    "rename_genes",
    "target_features",
    "text_features",
]
