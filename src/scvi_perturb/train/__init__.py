"""Training in stages, on scvi-tools' plan and runner."""

from scvi_perturb.train._callbacks import BestWeights, Checkpoint
from scvi_perturb.train._config import TrainConfig
from scvi_perturb.train._plan import PlanConfig, StagePlan
from scvi_perturb.train._runner import StageRunner
from scvi_perturb.train._stages import Stage, fit_stage

__all__ = [
    "BestWeights",
    "Checkpoint",
    "PlanConfig",
    "Stage",
    "StagePlan",
    "StageRunner",
    "TrainConfig",
    "fit_stage",
]
