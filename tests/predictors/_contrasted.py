"""A predictor whose changes are damped by `Contrast`: what a stack of one member has to say."""

from __future__ import annotations

from scvi_perturb.predictors import MeanPredictor
from scvi_perturb.predictors.stack.fit import Contrast, check_contrast


class ContrastedMean(MeanPredictor):
    name = "contrasted_mean"

    def __init__(self, base, *, contrast=1.0):
        super().__init__(profile=base.profile)
        self.base = base
        self.contrast = check_contrast(contrast)
        self.needs_variances = base.needs_variances

    def _learn(self):
        super()._learn()
        self.base.fit_profiles(self.profiles)
        self._damping = Contrast.of(self.deltas, self.contrast, who=type(self).__name__)

    def _changes(self, requests, given):
        return self._damping(self.base.changes(requests, given))
