"""Weighted sums of operators, asked for by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_perturb._errors import SchemaError
from scvi_perturb.model._causal_draw import CausalDraw
from scvi_perturb.module import ConditionTensors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OperatorSums"]


class OperatorSums(CausalDraw):
    """Sums and differences of operators in place of conditions."""

    def _sums(
        self, sums: Mapping[str, Mapping[str, float]]
    ) -> tuple[ConditionTensors, torch.Tensor, pd.DataFrame]:
        """Return sums as conditions with weights, at reference doses and times, and their names.

        Raises
        ------
        UnknownPerturbationError
            For a perturbation neither trained on nor with features.
        SchemaError
            For an empty sum, or a weight that is not a finite number.
        """
        seen, n = self._seen(), max([len(parts) for parts in sums.values()] + [1])
        component = np.zeros((len(sums), n), dtype=np.int64)
        weight = np.zeros((len(sums), n), dtype=np.float32)
        mask = np.zeros((len(sums), n), dtype=bool)
        for i, (name, parts) in enumerate(sums.items()):
            if not parts or not np.isfinite(np.array(list(parts.values()), dtype=float)).all():
                msg = f"{name!r} is {dict(parts)}; expected finite weights of perturbations."
                raise SchemaError(msg)
            for j, (perturbation, value) in enumerate(parts.items()):
                component[i, j] = self._vocabulary.id_of(perturbation, seen)
                weight[i, j], mask[i, j] = value, True
        ids = torch.from_numpy(component).to(self._device())
        dose = self._network.operators.reference_dose[ids]
        time = torch.full((len(sums),), torch.nan, device=self._device())
        tensors = ConditionTensors(ids, dose, torch.from_numpy(mask).to(self._device()), time)
        frame = pd.DataFrame({self._screen.keys.perturbation: list(sums)})
        return tensors, torch.from_numpy(weight).to(self._device()), frame
