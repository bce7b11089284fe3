"""Results of a small study: trivial methods, one that refuses, and hostile names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark import TRIVIAL, Method, Study, Task, run
from scvi_perturb.data import ScreenKeys, simulate_screen

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_perturb.benchmark import Results, Setting

NAMES = ("no_change", "additive", "latent_additive", "control_cells", "shifted_control")
TASK = "sim"
NOTE = "A note with <script>alert(1)</script> & more"


def refuses(setting: Setting):
    msg = f"<b>seed {setting.seed}</b>\nis unknown | to me"
    raise SchemaError(msg)


def small_results(folder: Path) -> Results:
    """Return the results of two seeds."""
    task = Task(
        name=TASK,
        title="Simulated <screen>",
        note=NOTE,
        load=partial(simulate_screen, n_cells=1500, n_genes=100),
        kind="unseen_combination",
        keys=ScreenKeys("perturbation", context=("cell_type",)),
    )
    chosen = tuple(method for method in TRIVIAL if method.name in NAMES)
    shy = Method(name="shy", title="shy <i>model</i>", make=refuses)
    return run(Study(tasks=(task,), methods=(*chosen, shy), seeds=(0, 1), max_folds=1), folder)
