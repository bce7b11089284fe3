"""Read a file of cells, and say what is wrong with one that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData

__all__ = ["read_screen"]


def read_screen(path: str | PathLike[str]) -> AnnData:
    """Read an `.h5ad` file into memory.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    SchemaError
        If it cannot be read: it is cut off, or not an AnnData file.
    """
    import anndata

    if not Path(path).is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # anndata raises what HDF5, NumPy and pandas raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        msg = (
            f"{path} could not be read as .h5ad: it may be cut off or not be an AnnData file; "
            f"copy or download it again. The reason given: {reason}"
        )
        raise SchemaError(msg) from error
