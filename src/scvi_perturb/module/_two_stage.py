"""A representation and a generator in its latent, saved and moved as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.module.base import BaseModuleClass

from scvi_perturb.module._scvi import ScviRepresentation

if TYPE_CHECKING:
    from scvi_perturb.module._autoencoder import CountAutoencoder
    from scvi_perturb.module._bins import RawCounts
    from scvi_perturb.module._generator import LatentGenerator

__all__ = ["TwoStageModule"]


class TwoStageModule(BaseModuleClass):
    """Hold both stages; each is trained by its own plan, the first then frozen.

    Parameters
    ----------
    representation
        Stage one, see :class:`scvi_perturb.module.Representation`.
    generator
        Stage two, e.g. :class:`scvi_perturb.module.LatentDiffusion`.
    """

    representation: CountAutoencoder | ScviRepresentation | RawCounts
    generator: LatentGenerator

    def __init__(
        self, representation: CountAutoencoder | RawCounts, generator: LatentGenerator
    ) -> None:
        super().__init__()
        self.representation = representation
        self.generator = generator

    def on_load(self, model: Any, **_: object) -> None:  # noqa: ANN401 - a model of scvi-tools
        """Put a trained scVI back as stage one before its weights are loaded."""
        settings = getattr(model, "scvi_settings_", None)
        if settings is not None:
            self.representation = ScviRepresentation(settings)
