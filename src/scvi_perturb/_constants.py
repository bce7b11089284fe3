"""Names shared by every part: registry keys, default labels, keys of results."""

from __future__ import annotations

from typing import Final

#: Keys under which the fields of a screen are registered with scvi-tools (and named in a batch).
X_KEY: Final = "X"
CONDITION_KEY: Final = "condition"
CONTEXT_KEY: Final = "context"
BATCH_KEY: Final = "batch"
LIBRARY_KEY: Final = "library"
#: Before the column, of the keys of metadata.
METADATA_PREFIX: Final = "metadata_"

#: Columns that `scvi_perturb.pp.harmonize` writes and that `setup_anndata` looks for by default.
PERTURBATION_COLUMN: Final = "perturbation"
DOSE_COLUMN: Final = "dose"
TIME_COLUMN: Final = "time"
KIND_COLUMN: Final = "perturbation_type"

CONTROL: Final = "control"
SEPARATOR: Final = "+"

#: Where provenance is written: `adata.uns[UNS_KEY]`.
UNS_KEY: Final = "scvi_perturb"
#: Total to which profiles are scaled before `log1p`: counts per ten thousand.
TARGET_SUM: Final = 1e4
