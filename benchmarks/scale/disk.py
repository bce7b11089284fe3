"""A screen on disk: train a hybrid for one epoch, then predict all conditions to a file.

Every size has a process of its own, since memory is that of a process. Exponents are those of the
CPU seconds between two sizes, of steps that take long enough to be told from noise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.scale import Row, exponent, peak_gib
from benchmarks.scale.large_screen import write_large_screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The steps that are told apart: module and name of a function, or of a method of a class.
STEPS: Final = {
    "group sums": ("predictors.profiles", "TrainingProfiles.from_screen"),
    "changes from control": ("predictors.base", "MeanPredictor.fit_profiles"),
    "stages": ("model.latent.fit", "fit_stage"),
    "latents": ("model.latent.fit", "encode_in_shares"),
    "pairs": ("model.latent.fit", "make_pairs"),
    "additive start": ("model.latent.fit", "fit_additive"),
    "library shifts": ("model.base.model", "library_shifts"),
    "kept controls": ("model.base.model", "kept_controls"),
    "fingerprint": ("model.base.model", "data_hash"),
    "request": ("model.base.model", "parse_request"),
    "novelty": ("model.base.model", "novelty"),
}
#: Sizes between which exponents are taken: cells and perturbations.
SMALL, MORE_CELLS, MORE_CONDITIONS = (40_000, 1_000), (160_000, 1_000), (160_000, 4_000)
FULL: Final = (500_000, 9_867)
QUICK: Final = ((4_000, 100), (8_000, 100), (8_000, 200))
#: Whether to leave the stack and the optimal transport out.
TABLES_ALONE = False
#: CPU seconds from which an exponent is more than noise.
_LEAST: Final = 1.0
_MOST_GIB, _MOST_OF_CELLS, _MOST_OF_CONDITIONS = 8.0, 1.1, 1.3


@dataclass(frozen=True, slots=True)
class Measured:
    """CPU seconds of each step, and the most memory, of one size."""

    seconds: dict[str, float]
    gib: float


def rows(*, quick: bool) -> Iterator[Row]:
    """Measure three sizes for exponents, and the full one."""
    sizes = QUICK if quick else (SMALL, MORE_CELLS, MORE_CONDITIONS)
    small, cells, conditions = (_measured(size, quick=quick) for size in sizes)
    powers: dict[str, tuple[float, float]] = {}
    for step, seconds in conditions.seconds.items():
        if seconds < _LEAST or not all(m.seconds.get(step) for m in (small, cells)):
            continue
        of_cells = _power(sizes[:2], 0, small.seconds[step], cells.seconds[step])
        of_conditions = _power(sizes[1:], 1, cells.seconds[step], seconds)
        powers[step] = of_cells, of_conditions
        for what, power, most in (
            ("cells", of_cells, _MOST_OF_CELLS),
            ("conditions", of_conditions, _MOST_OF_CONDITIONS),
        ):
            met = None if quick else power <= most
            yield Row(f"disk, {step}: power of {what}", power, "", f"<= {most}", met)
    largest, size = (conditions, sizes[2]) if quick else (_measured(FULL, quick=False), FULL)
    label = f"disk, {size[0]:,} cells, {size[1]:,} perturbations"
    for step, seconds in largest.seconds.items():
        yield Row(f"{label}: {step}", seconds, "CPU s")
    met = None if quick else largest.gib <= _MOST_GIB
    yield Row(f"{label}: peak", largest.gib, "GiB", f"<= {_MOST_GIB:g}", met)
    for n_cells, n_conditions in ((2_000_000, 9_867), (100_000_000, 55_000)):
        total = sum(
            largest.seconds[step]
            * (n_cells / size[0]) ** max(of_cells, 1.0)
            * (n_conditions / size[1]) ** max(of_conditions, 0.0)
            for step, (of_cells, of_conditions) in powers.items()
            if step in _TOTAL
        )
        what = f"disk, {n_cells:,} cells, {n_conditions:,} conditions: projected"
        yield Row(what, total / 3600, "CPU h", note="from the powers above")


#: Steps that hold all others.
_TOTAL: Final = ("register", "train", "predict")


def _power(sizes: tuple[tuple[int, int], ...], axis: int, before: float, after: float) -> float:
    return exponent((sizes[0][axis], sizes[1][axis]), (before, after))


def _measured(size: tuple[int, int], *, quick: bool) -> Measured:
    """Run one size in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "screen.h5ad")
        n_genes = 500 if quick else 8_000
        write_large_screen(path, n_cells=size[0], n_perturbations=size[1], n_genes=n_genes)
        command = [sys.executable, "-m", "benchmarks.scale.disk", str(path)]
        command += ["--tables"] if TABLES_ALONE else []
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(found.stdout.splitlines()[-1]))


def train_and_predict(path: Path, *, tables_alone: bool) -> Measured:
    """Register, train for one epoch and predict all conditions, and time the steps."""
    import anndata

    from scvi_perturb.model import HybridResidualModel
    from scvi_perturb.train import TrainConfig

    seconds: dict[str, float] = {}
    for step, (module, name) in STEPS.items():
        *owner, function = name.split(".")
        holder: Any = import_module(f"scvi_perturb.{module}")
        holder = getattr(holder, owner[0]) if owner else holder
        method = vars(holder)[function]
        if isinstance(method, classmethod):
            timed: Any = classmethod(_timed(method.__func__, step, seconds))
        else:
            timed = _timed(method, step, seconds)
        setattr(holder, function, timed)
    adata = anndata.read_h5ad(path, backed="r")

    def register() -> HybridResidualModel:
        HybridResidualModel.setup_anndata(adata, context_keys=["cell_type"])
        return HybridResidualModel(adata, **_arguments(tables_alone=tables_alone))

    model = _timed(register, "register", seconds)()
    config = TrainConfig(generator_batch_size=1024)
    n_steps = -(-adata.n_obs // 1024)
    options = {"n_steps": n_steps, "batch_size": 1024, "config": config}
    train = _timed(model.train, "train", seconds)
    train(1, **options, enable_progress_bar=False, accelerator="cpu")
    asked = [name for name in adata.obs["perturbation"].cat.categories if name != "control"]
    predict = _timed(model.predict, "predict", seconds)
    predict(asked, n_samples=100, path=path.with_name("effects.h5ad"))
    return Measured(seconds, peak_gib())


def _arguments(*, tables_alone: bool) -> dict[str, Any]:
    """Return the arguments of the model.

    With `tables_alone`, stage one is a mean of training and cells are matched at random: what is
    left is what the tables of conditions and cells cost.
    """
    if not tables_alone:
        return {}
    from scvi_perturb.module import DiffusionConfig
    from scvi_perturb.predictors import ContextMean

    DiffusionConfig.matching = property(lambda _: "random")  # type: ignore[method-assign, assignment]
    return {"mean": ContextMean("all")}


def _timed(
    function: Callable[..., Any], step: str, seconds: dict[str, float]
) -> Callable[..., Any]:
    """Return a function whose CPU seconds are added up."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[step] = seconds.get(step, 0.0) + time.process_time() - start

    return run


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    measured = train_and_predict(Path(sys.argv[1]), tables_alone="--tables" in sys.argv)
    print(json.dumps({"seconds": measured.seconds, "gib": measured.gib}))
