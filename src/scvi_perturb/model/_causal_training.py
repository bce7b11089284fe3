"""`train` of latent groups, and what is remembered of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb._constants import CONTEXT_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.model._causal_fit import CausalFit
from scvi_perturb.model._causal_setup import CausalSetup
from scvi_perturb.model._checks import check_folder, check_training_cells
from scvi_perturb.model._trained_on import TrainedOn
from scvi_perturb.train import TrainConfig

if TYPE_CHECKING:
    import torch

    from scvi_perturb.data import ScreenReader, Split
    from scvi_perturb.module import CausalModule

__all__ = ["CausalTraining", "latent_names"]


class CausalTraining(CausalSetup, TrainedOn):
    """`train` of models of latent groups."""

    module: CausalModule
    #: Which latents are in use, a row each: group, and whether its mean varies between cells.
    active_units_: pd.DataFrame | None
    #: Covariance of identity within contexts and between them, and the mean over contexts.
    identity_spread_: dict[str, np.ndarray]

    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Epochs at most; None chooses by the number of cells. Training stops before when the
            validation loss no longer falls, with the best weights.
        split
            Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`;
            None validates on a tenth of the cells.
        batch_size
            Cells a batch.
        seed
            Seed of order, noise and dropout.
        checkpoint_dir
            Where the state of the run is written; calling `train` again with the same folder
            after a kill goes on where it stopped. A folder of another run is refused.
        config
            Optimisation and stopping, of which `representation` is read.
        **trainer_kwargs
            For scvi-tools' Trainer: `accelerator`, `devices`, `strategy`, `enable_progress_bar`,
            `precision`, ...

        Raises
        ------
        SchemaError
            When the model has no data; when training cells of a screen hold no control, in all or
            in one context, too few treated cells, cells without counts, or library sizes below
            the counts; when `checkpoint_dir` holds another run.
        """
        reader = self._reader(None)
        parts = self._parts(split, len(reader), seed)
        self._check_cells(reader, parts.train)
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            asked = {"max_epochs": max_epochs, "batch_size": batch_size}
            check_folder(
                folder, self._describe_run(parts, asked | {"seed": seed, "config": config})
            )
        fit = CausalFit(self, reader, parts, config, trainer_kwargs, folder)
        fit.prepare(seed=seed)
        fit.optimise(max_epochs, batch_size=batch_size, seed=seed)
        self._remember_pairs(reader.codes, parts.train)
        fit.finish(seed=seed)
        self._remember(reader, parts, split, seed)

    def _check_cells(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Raise unless there is something to learn from."""
        screen = self._screen
        if screen.is_perturbed and not screen.real_values:
            check_training_cells(reader, train, screen)
        elif len(train) < 2:
            msg = f"There are {len(train)} training cells or samples; at least two are needed."
            raise SchemaError(msg)

    def _remember_activity(self, active: np.ndarray) -> None:
        """Remember which latents are in use."""
        names = latent_names(self.module.representation.sizes)
        groups = ["technical" if n == "depth" else n.rpartition("_")[0] for n in names]
        table = {"group": groups, "active": active.astype(bool)}
        self.active_units_ = pd.DataFrame(table, index=names)

    def _remember_spread(self, latent: torch.Tensor, codes: dict[str, np.ndarray]) -> None:
        """Remember how identity varies within contexts and between them."""
        identity = self.module.representation.groups(latent).identity.double().numpy()
        _, context = np.unique(codes[CONTEXT_KEY], return_inverse=True)
        size = np.bincount(context)
        total = np.zeros((len(size), identity.shape[1]))
        np.add.at(total, context, identity)
        means = total / size[:, None]
        away = identity - means[context]
        centre = means.mean(axis=0)
        n_contexts = len(size)
        within = away.T @ away / max(len(identity) - n_contexts, 1)
        apart = means - centre
        # Of few contexts only variances are known.
        between = np.diag(apart.T @ apart).copy() / max(n_contexts - 1, 1)
        between = between if n_contexts > 1 else np.diag(within).copy()
        self.identity_spread_ = {
            "within": within,
            "between": np.diag(between + 1e-6),
            "centre": centre,
        }


def latent_names(sizes: tuple[int, int, int]) -> list[str]:
    """Return the names of latents: `identity_0`, ..., the depth first of the technical ones."""
    groups = ("identity", "state", "technical")
    names = [f"{group}_{i}" for group, n in zip(groups, sizes, strict=True) for i in range(n)]
    first = sizes[0] + sizes[1]
    kept, technical = names[:first], names[first:-1]
    return [*kept, "depth", *technical]
