"""Draw real and predicted cells, effects, and training. Functions return Axes and show nothing."""

from __future__ import annotations

from scvi_perturb.pl._effects import effect_scatter
from scvi_perturb.pl._training import training_history
from scvi_perturb.pl._umap import umap_real_and_predicted

__all__ = ["effect_scatter", "training_history", "umap_real_and_predicted"]
