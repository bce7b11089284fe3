"""A command: `scvi-perturb count screen.h5ad --column guide`."""

from __future__ import annotations

from pathlib import Path


def count(screen: Path, *, column: str = "perturbation") -> None:
    """Print how many cells each perturbation has.

    Parameters
    ----------
    screen
        An h5ad file.
    column
        Column of `obs` with the perturbations.
    """
    import anndata

    from scvi_perturb import SchemaError

    obs = anndata.read_h5ad(screen, backed="r").obs
    if column not in obs:
        msg = f"{screen} has no column {column!r}; it has {', '.join(obs)}."
        raise SchemaError(msg)
    print(obs[column].value_counts().to_string())
