"""What training leaves behind: cells seen, epochs, and the additive start."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import wraps
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import torch

from scvi_perturb.data.datamodule import ScreenDataModule
from scvi_perturb.data.reader import CompressedCells, read_rows
from scvi_perturb.nn.perturbation import hill_factor
from scvi_perturb.train.runner import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi.model.base import BaseModelClass
    from scvi.module.base import BaseModuleClass

    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.module.base import ConditionTensors
    from scvi_perturb.train.plan import TrainConfig

Train = TypeVar("Train", bound="Callable[..., None]")


def all_or_nothing(train: Train) -> Train:
    """Make `train` leave the model as it was when it fails or is interrupted."""

    @wraps(train)
    def run(self: BaseModelClass, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        before = {**vars(self), "module": deepcopy(self.module)}
        try:
            train(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast("Train", run)


FEWEST_EPOCHS, MOST_EPOCHS = 10, 100


def n_batches(n_cells: int, batch_size: int, trainer_kwargs: dict[str, Any]) -> int:
    """Return the number of batches of an epoch in each process."""
    devices = trainer_kwargs.get("devices")
    share = -(-n_cells // (devices if isinstance(devices, int) and devices > 1 else 1))
    return max(1, -(-share // batch_size))


def mean_proportions(reader: ScreenReader, train: np.ndarray) -> torch.Tensor:
    """Return the mean over training cells of each gene's share of the library, `(n_genes,)`."""
    library = reader.library
    total = np.zeros(reader.counts.shape[1])
    for rows in np.array_split(train, max(1, len(train) // 4096)):
        counts = read_rows(reader.counts, rows)
        size = np.asarray(counts.sum(axis=1)).ravel() if library is None else library[rows]
        total += np.asarray(counts.T @ (1.0 / np.maximum(size, 1.0))).ravel()
    return torch.from_numpy(total / len(train)).float()


def representation_stage(
    module: BaseModuleClass,
    reader: ScreenReader,
    parts: CellSplit,
    config: TrainConfig,
    *,
    max_epochs: int | None,
    batches: tuple[int, int],
    seed: int,
) -> Stage:
    """Return the stage that trains a representation on cells.

    `batches` are the cells of a batch, and the batches of an epoch in each process.
    """
    batch_size, n_in_epoch = batches
    wanted = round(config.representation_steps / n_in_epoch)
    epochs = max_epochs or int(np.clip(wanted, FEWEST_EPOCHS, MOST_EPOCHS))
    source = CompressedCells(reader) if getattr(module, "reads_sparse", False) else reader
    data = ScreenDataModule(
        source,
        train_idx=parts.train,
        val_idx=parts.validation,
        batch_size=batch_size,
        seed=seed,
    )
    return Stage(
        "representation",
        module,
        data,
        replace(config.representation, n_steps=epochs * n_in_epoch),
        epochs,
        patience=config.patience if config.early_stopping else None,
        keep_best=config.keep_best,
        gradient_clip=config.gradient_clip[0],
        compile=config.compile,
    )


class CellSplit(NamedTuple):
    """Indices of the cells that train, validate, and are held out."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


EC50S = (-2.0, -1.0, 0.0, 1.0, 2.0)
SLOPES = (0.5, 1.0, 2.0)
NOISES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FEATURE_SHARES = (0.0, 0.5, 0.9)
#: Shares of the variance of components' vectors that all have in common.
COMMON_SHARES = (0.0, 0.3, 0.6, 0.9)
#: Conditions on which noise, features and dose curve are chosen: each trial is cubic in them.
MAX_SEARCHED = 400


class AdditiveFit(NamedTuple):
    """Vectors of components `(n_ids, n_latent)`, and the shared dose curve."""

    vectors: torch.Tensor
    log_ec50: float
    log_slope: float


def fit_additive(
    move: torch.Tensor,
    code: np.ndarray,
    conditions: ConditionTensors,
    reference_dose: torch.Tensor,
    features: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> AdditiveFit:
    """Fit the vectors of components.

    Noise, the shares of features and of what all have in common, and the dose curve are those with
    the least error when each condition is left out in turn (in closed form).

    `move`: Displacements of treated cells, `(n_cells, n_latent)`. `code`: Condition of each,
    `(n_cells,)`. `conditions`: Conditions by code. `reference_dose`: Dose of each component at
    which the curve is one, `(n_ids,)`. `features`: Modality -> values and mask of each id.
    """
    codes, inverse, size = np.unique(code, return_inverse=True, return_counts=True)
    total = torch.zeros(len(codes), move.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(inverse), move.double())
    mean = (total / torch.from_numpy(size)[:, None]).numpy()
    noise = float(move.double().var(0).mean()) / size
    rows = conditions.rows(torch.from_numpy(codes))
    alike = _similarity(features, len(reference_dose))
    some = np.sort(np.random.default_rng(0).permutation(len(codes))[:MAX_SEARCHED])
    shares = FEATURE_SHARES if alike is not None and len(codes) > 3 else (0.0,)
    commons = COMMON_SHARES if len(codes) > 3 else (0.0,)
    curves = [(k, h) for k in EC50S for h in SLOPES] if _has_doses(rows) else [(0.0, 1.0)]
    tried = []
    for log_ec50, slope in curves:
        design = _design(rows, reference_dose, log_ec50, float(np.log(slope)))
        for common, share in product(commons, shares):
            kernel = _kernel(common, share, alike, len(reference_dose))
            for level in NOISES if len(codes) > 3 else NOISES[:1]:
                error, _ = _solve(design[some], kernel, mean[some], noise[some], level)
                # Of equals the first: where each component has one condition, the level does not
                # matter to those left out, and rounding must not choose it.
                error = float(f"{error:.8g}")
                tried.append((error, log_ec50, float(np.log(slope)), common, share, level))
    _, log_ec50, log_slope, common, share, level = min(tried)
    design = _design(rows, reference_dose, log_ec50, log_slope)
    kernel = _kernel(common, share, alike, len(reference_dose))
    _, vectors = _solve(design, kernel, mean, noise, level)
    return AdditiveFit(torch.from_numpy(vectors).float(), log_ec50, log_slope)


def _kernel(common: float, share: float, alike: np.ndarray | None, n_ids: int) -> np.ndarray:
    """Return the prior covariance of components: what all share, identities, and features."""
    own = (1 - share) * np.eye(n_ids)
    return common + (1 - common) * (own if alike is None else own + share * alike)


def _solve(
    design: np.ndarray, kernel: np.ndarray, mean: np.ndarray, noise: np.ndarray, level: float
) -> tuple[float, np.ndarray]:
    """Return the leave-one-condition-out error at a level of misfit, and the vectors."""
    prior = design @ kernel @ design.T
    signal = max(float((mean**2).mean() - noise.mean()), 1e-6) / max(np.diag(prior).mean(), 1e-9)
    prior, cross = signal * prior, signal * (kernel @ design.T)
    inverse = np.linalg.inv(prior + np.diag(noise + level * np.diag(prior).mean()))
    weights = inverse @ mean
    left_out = weights / np.diag(inverse)[:, None]
    return float((left_out**2).mean()), cross @ weights


def _design(
    rows: ConditionTensors, reference_dose: torch.Tensor, log_ec50: float, log_slope: float
) -> np.ndarray:
    """Return the dose factor of each component in each condition, `(n_conditions, n_ids)`."""
    relative = (rows.dose / reference_dose[rows.component]).log()
    factor = hill_factor(relative, torch.tensor(log_ec50), torch.tensor(log_slope)) * rows.mask
    design = torch.zeros(len(rows.component), len(reference_dose))
    return design.scatter_add_(1, rows.component, factor).double().numpy()


def _has_doses(rows: ConditionTensors) -> bool:
    return len(torch.unique(rows.dose[rows.mask])) > 1


def _similarity(
    features: dict[str, tuple[torch.Tensor, torch.Tensor]], n_ids: int
) -> np.ndarray | None:
    """Return the mean cosine of centred features, over the modalities both have; diagonal one."""
    if not features:
        return None
    total, shared = np.zeros((n_ids, n_ids)), np.zeros((n_ids, n_ids))
    for values, present in features.values():
        there = present.numpy().astype(bool)
        if not there.any():
            continue
        centred = np.where(there[:, None], values.numpy() - values.numpy()[there].mean(0), 0.0)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        unit = centred / np.where(norm > 0, norm, 1.0)
        both = np.outer(there, there)
        total += np.where(both, unit @ unit.T, 0.0)
        shared += both
    alike = total / np.maximum(shared, 1)
    np.fill_diagonal(alike, 1.0)
    return alike
