"""Training in stages, on scvi-tools' plan and runner."""

from scvi_perturb.train.callbacks import BestWeights, Checkpoint
from scvi_perturb.train.plan import PlanConfig, StagePlan, TrainConfig
from scvi_perturb.train.runner import Stage, StageRunner, fit_stage

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
