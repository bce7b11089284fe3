"""Summaries of outputs: what is kept of an array, and how near two summaries must be.

A summary is one line. Of a text: `text`, and the text or the beginning of its hash. Of an array:
type, shape, `whole` where it holds whole numbers alone; the number of values that are not finite;
mean, standard deviation and projections onto two fixed directions; the beginning of the hash.

How near is near. On one machine outputs are the same bit for bit. On another processor sums are
taken in another order; this was measured with torch, MKL, oneDNN, OpenBLAS and numpy kept from
AVX-512, and from AVX2 (`ATEN_CPU_CAPABILITY`, `MKL_ENABLE_INSTRUCTIONS`, `ONEDNN_MAX_CPU_ISA`,
`OPENBLAS_CORETYPE`, `NPY_DISABLE_CPU_FEATURES`). Errors of floats are relative to the root mean
square of the array:

- Up to 1e-6 without training: `FLOAT`.
- Up to 6e-5 after a few steps of training in float32: `TRAINED`.
- Up to 0.014 after training a generator, which matches cells with control cells: where two matches
  are nearly as good, rounding decides, and training goes on from the other one: `MATCHED`.
- Up to 0.3 in losses of the generator on few validation cells, one of which was matched otherwise,
  and 0.2 in quantiles of drawn counts: `COARSE`.
- Counts that are drawn may be others: one that falls on the other side of a threshold moves all
  draws after it. Errors of their sums, in standard errors: `DRAWN`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

FLOAT, TRAINED, MATCHED, COARSE = 1e-4, 1e-3, 0.05, 1.0
DRAWN = 6.0
#: Frequencies of the directions onto which arrays are projected.
_FREQUENCIES = (1.0, math.sqrt(2))
#: What is no number: rounding around zero.
_NONE = 1e-9
_SHORT = 40
_FEW = 50


@dataclass(frozen=True)
class Summary:
    """An array in a few numbers.

    Attributes
    ----------
    dtype, shape, whole
        Its type and shape, and whether it holds many whole numbers as floats.
    n_not_finite, mean, std, projections
        Numbers: of values that are not finite, and of the others.
    sha
        Beginning of the hash of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    whole: bool
    n_not_finite: int
    mean: float
    std: float
    projections: tuple[float, ...]
    sha: str

    @classmethod
    def of(cls, array: np.ndarray) -> Summary:
        values = array.astype(np.float64).ravel()
        finite = np.isfinite(values)
        values = np.where(finite, values, 0.0)
        place = np.arange(1, values.size + 1)
        projections = []
        for frequency in _FREQUENCIES if values.size else ():
            direction = np.cos(frequency * place)
            projections.append(float(direction @ values / np.linalg.norm(direction)))
        is_float = array.dtype.kind == "f" and values.size >= _FEW
        return cls(
            dtype=array.dtype.str.lstrip("<|"),
            shape=array.shape,
            whole=is_float and bool((values == np.rint(values)).all() and values.any()),
            n_not_finite=int((~finite).sum()),
            mean=float(values.mean()) if values.size else 0.0,
            std=float(values.std()) if values.size else 0.0,
            projections=tuple(projections),
            sha=_sha(np.ascontiguousarray(array).tobytes()),
        )

    @classmethod
    def parse(cls, line: str) -> Summary:
        dtype, shape, whole, n_not_finite, mean, std, *projections, sha = line.split()
        return cls(
            dtype=dtype,
            shape=tuple(int(size) for size in shape.split("x") if size),
            whole=whole == "whole",
            n_not_finite=int(n_not_finite),
            mean=float(mean),
            std=float(std),
            projections=tuple(map(float, projections)),
            sha=sha,
        )

    def __str__(self) -> str:
        numbers = [f"{x:.7g}" for x in (self.mean, self.std, *self.projections)]
        shape = "x".join(map(str, self.shape)) or "x"
        kind = "whole" if self.whole else "real"
        return " ".join([self.dtype, shape, kind, str(self.n_not_finite), *numbers, self.sha])

    def is_near(self, recorded: Summary, tolerance: float) -> bool:
        """Whether this is the recorded output, made on any processor."""
        for name in ("dtype", "shape", "whole", "n_not_finite"):
            if getattr(self, name) != getattr(recorded, name):
                return False
        size = max(1, math.prod(recorded.shape))
        error = tolerance * math.hypot(recorded.mean, recorded.std) + _NONE
        of_mean = of_std = of_projection = error
        if recorded.whole:
            of_projection = DRAWN * math.sqrt(2) * recorded.std
            of_mean, of_std = of_projection / math.sqrt(size), 0.5 * recorded.std
        pairs = zip(self.projections, recorded.projections, strict=True)
        return (
            abs(self.mean - recorded.mean) <= of_mean
            and abs(self.std - recorded.std) <= of_std
            and all(abs(one - two) <= of_projection for one, two in pairs)
        )


def summarize(value: Any) -> str:
    """Return the summary of an array or a text."""
    if isinstance(value, str):
        if len(value) <= _SHORT:
            return f"text {value}"
        return f"text {_sha(value.encode())} {value[: _SHORT // 2]!r}..."
    array = _dense(value)
    if array.dtype.kind in "OUST":
        return summarize(",".join(map(str, array.ravel().tolist())))
    return str(Summary.of(array))


def differ(found: str, recorded: str, *, tolerance: float | None) -> bool:
    """Whether an output is not the recorded one within a tolerance, or bit for bit for None."""
    if tolerance is None or found.startswith("text") or recorded.startswith("text"):
        return found != recorded
    return not Summary.parse(found).is_near(Summary.parse(recorded), tolerance)


def tolerance_of(group: str, name: str) -> float:
    """Return how near an output of another processor is."""
    if not group.startswith("model"):
        return FLOAT
    before = ("history.representation", "get_latent", "get_loadings", "posterior_predictive")
    if "causal" in group or name.startswith(before):
        return TRAINED
    coarse = ("history.generator", "predict_with_confidence.cell_")
    return COARSE if name.startswith(coarse) else MATCHED


def flatten(name: str, value: Any) -> dict[str, Any]:
    """Return the arrays and texts of an output by name: those of tables, AnnData and mappings."""
    if isinstance(value, dict):
        parts = [flatten(f"{name}.{key}" if name else key, part) for key, part in value.items()]
        return {key: one for part in parts for key, one in part.items()}
    if isinstance(value, AnnData):
        return _of_anndata(name, value)
    if isinstance(value, pd.Series):
        value = value.to_frame()
    if isinstance(value, pd.DataFrame):
        return _of_table(name, value)
    return {name: value}


def _of_anndata(name: str, adata: AnnData) -> dict[str, Any]:
    found = {} if adata.X is None else {f"{name}.X": adata.X}
    for slot in (adata.layers, adata.obsm):
        for key, values in sorted(slot.items()):
            found |= flatten(f"{name}.{key}", values)
    return found | _of_table(f"{name}.obs", adata.obs)


def _of_table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return floats column by column, or as one matrix where there are many; the rest as text."""
    numeric = table.select_dtypes("floating")
    labels = [*map(str, table.columns), *map(str, table.index)]
    for column in table.drop(columns=numeric.columns):
        labels += table[column].astype(str).tolist()
    found: dict[str, Any] = {f"{name}.labels": ",".join(labels)}
    if numeric.shape[1] > 12:
        return found | {f"{name}.values": numeric.to_numpy(float)}
    return found | {f"{name}.{column}": numeric[column].to_numpy() for column in numeric}


def _dense(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if sparse.issparse(value):
        return value.toarray()
    if hasattr(value, "todense"):
        return np.asarray(value.todense())
    return np.asarray(value)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:10]
