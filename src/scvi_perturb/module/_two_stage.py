"""A representation and a generator in its latent, saved and moved as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.module.base import BaseModuleClass, LossOutput

from scvi_perturb.module._scvi import ScviRepresentation

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb._typing import Batch
    from scvi_perturb.module._autoencoder import CountAutoencoder
    from scvi_perturb.module._diffusion import LatentDiffusion

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

    representation: CountAutoencoder | ScviRepresentation
    generator: LatentDiffusion

    def __init__(self, representation: CountAutoencoder, generator: LatentDiffusion) -> None:
        super().__init__()
        self.representation = representation
        self.generator = generator

    def on_load(self, model: Any, **_: object) -> None:  # noqa: ANN401 - a model of scvi-tools
        """Put a trained scVI back as stage one before its weights are loaded."""
        settings = getattr(model, "scvi_settings_", None)
        if settings is not None:
            self.representation = ScviRepresentation(settings)

    def _get_inference_input(self, tensors: Batch, **_: object) -> dict[str, Batch]:
        return {"tensors": tensors}

    def _get_generative_input(self, tensors: Batch, *_: object, **__: object) -> dict[str, Tensor]:
        del tensors
        return {}

    def inference(self, tensors: Batch) -> dict[str, Tensor]:
        """Return mean and log variance of the latents."""
        mean, log_variance = self.representation.encode(tensors)
        return {"qz_m": mean, "qz_logv": log_variance, "z": mean}

    def generative(self) -> dict[str, Tensor]:
        """Return nothing: cells are drawn by the model's verbs."""
        return {}

    def loss(self, *args: object, **kwargs: object) -> LossOutput:
        """Raise: the stages are trained one after the other, never jointly."""
        raise NotImplementedError

    def sample(self, *args: object, **kwargs: object) -> Tensor:
        """Raise: cells are drawn by the model's verbs."""
        raise NotImplementedError
