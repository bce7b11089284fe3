"""Training on counts on disk, beside training on the same counts in memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from benchmarks.scale import Row, cpu_seconds, peak_gib
from scvi_perturb import PerturbDiffusion
from scvi_perturb.data import write_shards
from scvi_perturb.data.reader import open_backed

if TYPE_CHECKING:
    from collections.abc import Iterator

N_CELLS, N_GENES, DENSITY = 20_000, 2_000, 0.05
N_CONDITIONS, N_EPOCHS, N_STEPS = 100, 3, 100
LIMIT: Final = 1.2
#: Cells of the larger file whose training must not need more memory, in those of the smaller.
TIMES: Final = 4


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield the time of a whole training by storage, and the memory at two numbers of cells."""
    n_cells = N_CELLS // 5 if quick else N_CELLS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        screen = _screen(n_cells)
        screen.write_h5ad(folder / "plain.h5ad")
        screen.write_h5ad(folder / "gzip.h5ad", compression="gzip")
        write_shards(screen, folder / "shards.zarr", shuffle=False)
        _train(screen[:2_000].copy())  # what is done once is done
        memory, _ = cpu_seconds(lambda: _train(screen))
        yield Row("whole training, counts in memory", memory, "CPU s")
        for kind in ("plain.h5ad", "gzip.h5ad", "shards.zarr"):
            disk, _ = cpu_seconds(lambda path=folder / kind: _train(open_backed(path)))
            what = f"whole training, {kind.replace('.', ', ')}, against in memory"
            yield Row(what, disk / memory, "x", f"<= {LIMIT:g}", disk / memory <= LIMIT)
        write_shards(_screen(TIMES * n_cells), folder / "large.zarr", shuffle=False)
        peaks = [_peak(folder / kind) for kind in ("shards.zarr", "large.zarr")]
        for n, peak in zip((n_cells, TIMES * n_cells), peaks, strict=True):
            yield Row(f"most memory of training on shards, {n:,} cells", peak, "GiB")
        grown = peaks[1] / peaks[0]
        yield Row(f"the same, {TIMES} times the cells", grown, "x", "<= 1.1", grown <= 1.1)


def _screen(n_cells: int) -> AnnData:
    """Return a screen of counts without structure, ordered by condition."""
    rng = np.random.default_rng(0)
    parts = [
        sparse.random(2_000, N_GENES, DENSITY, format="csr", dtype=np.float32, rng=rng)
        for _ in range(n_cells // 2_000)
    ]
    counts = sparse.vstack(parts, format="csr")
    counts.data = np.ceil(4 * counts.data)
    condition = np.sort(rng.integers(N_CONDITIONS, size=n_cells))
    labels = np.array(["control", *(f"p{i}" for i in range(1, N_CONDITIONS))])[condition]
    obs = pd.DataFrame({"perturbation": labels}, index=np.arange(n_cells).astype(str))
    return AnnData(counts, obs=obs)


def _train(screen: AnnData) -> None:
    PerturbDiffusion.setup_anndata(screen)
    model = PerturbDiffusion(screen, seed=0)
    options = {"enable_progress_bar": False, "batch_size": 256}
    model.train(max_epochs=N_EPOCHS, n_steps=N_STEPS, seed=0, **options)


def _peak(path: Path) -> float:
    """Return the GiB that training in a process of its own needs at most."""
    command = [sys.executable, "-m", "benchmarks.scale.readers", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _train(open_backed(Path(sys.argv[1])))
    print(peak_gib())
