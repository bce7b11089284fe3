"""From distinct rows back to cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["spread"]


def spread(values: Sequence[str | None], inverse: NDArray[np.int64]) -> pd.Categorical[str]:
    """Return text categories of cells from one value a distinct row; None is missing."""
    return pd.Categorical(np.array(values, dtype=object)[inverse])
