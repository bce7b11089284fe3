"""Another predictor's changes, with what tells conditions apart brought forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb.predictors._contrast import Contrast, check_contrast
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Request

__all__ = ["ContrastedMean"]


class ContrastedMean(MeanPredictor):
    """Predict as another predictor, less of what many conditions have in common.

    Changes of conditions lie mostly along a few components: that of the strong against the weak, of
    the toxic against the harmless. A prediction of least error does, too, and then resembles many
    conditions at once. Here a predicted change, less the mean change of training, is multiplied
    with `(I + c S / s)^-1`, with `S` the covariance of training changes, `s` its largest
    eigenvalue and `c` the contrast: components are damped by as much as they vary, the
    leading one to `1 / (1 + c)`. It is the direction by which Fisher's discriminant tells
    conditions apart, with a covariance that is shrunk to a multiple of the identity. All of it is
    then multiplied with the number by which training changes, treated alike, come nearest to what
    they were: what is damped shall not make predictions small.

    This is a trade and no knowledge: predictions find their own condition among others more often,
    and have a larger error. For least error take the predictor itself.

    Parameters
    ----------
    base
        The predictor.
    contrast
        `c`, at least 0, which changes nothing.

    Raises
    ------
    ValueError
        If the contrast is negative or not finite.

    References
    ----------
    Friedman, Regularized discriminant analysis, Journal of the American Statistical Association
    1989.
    """

    name: ClassVar[str] = "contrasted_mean"

    def __init__(self, base: MeanPredictor, *, contrast: float = 1.0) -> None:
        super().__init__(profile=base.profile)
        self.base = base
        self.contrast = check_contrast(contrast)
        self.needs_variances = base.needs_variances

    def _learn(self) -> None:
        """Learn the components of training changes.

        Raises
        ------
        SchemaError
            If there is no training condition with a control.
        """
        super()._learn()
        self.base.fit_profiles(self.profiles)
        self._damping = Contrast.of(self.deltas, self.contrast, who=type(self).__name__)

    def changes(
        self, requests: Sequence[Request], given: Reference | None = None
    ) -> NDArray[np.float64]:
        """Return the predicted change of each request, all at once; as `MeanPredictor.changes`."""
        made = self.base.changes(requests, given)
        treated = np.array([not request.condition.is_control for request in requests])
        made[treated] = self._damping(made[treated])
        return made

    def _delta(self, request: Request) -> NDArray[np.float64]:
        return self.changes([request])[0]
