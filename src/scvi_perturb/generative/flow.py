"""Flow matching: straight lines from a source to the data, and the velocity between.

Time runs from 0 (source) to 1 (data), the order in which cells are carried; the diffusion's time
runs the other way. With Gaussian noise as the source, `x_t = t x_1 + (1 - t) eps`, and the
velocity `E[x_1 - eps | x_t]`, the score, the data and the noise are all affine in each other.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from scvi_perturb._errors import check_choice

__all__ = ["FlowQuantities", "TimeLaw", "flow_loss", "flow_quantities", "flow_times", "line"]


TimeLaw = Literal["uniform", "logit-normal"]


def line(source: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Return `(1 - t) source + t data` for times `(n,)` and points `(n, n_dim)`."""
    return torch.lerp(source, data, t[:, None])


def flow_times(
    n: int,
    law: TimeLaw = "uniform",
    *,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw training times, stratified: the same law, less noise in the loss.

    Parameters
    ----------
    n
        Number of times.
    law
        `"uniform"`, or `"logit-normal"`, with more weight on the middle, where the velocity of
        a flow from noise is hardest to tell (Esser et al. 2024).
    device, generator
        Of the result; source of randomness.

    Returns
    -------
    Tensor
        `(n,)`, in (0, 1).
    """
    check_choice("law", law, get_args(TimeLaw))
    order = torch.randperm(n, generator=generator, device=device)
    uniform = (order + torch.rand(n, generator=generator, device=device)) / n
    if law == "uniform":
        return uniform
    return torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))


def flow_loss(velocity: Tensor, source: Tensor, data: Tensor) -> Tensor:
    """Return the squared error of a velocity at a point of the line, averaged over dimensions.

    Parameters
    ----------
    velocity
        Predicted at `line(source, data, t)`, `(n, n_dim)`.
    source, data
        Ends of the line, `(n, n_dim)`.

    Returns
    -------
    Tensor
        `(n,)`.

    References
    ----------
    Lipman et al., Flow matching for generative modeling, 2023; Tong et al., Improving and
    generalizing flow-based generative models with minibatch optimal transport, 2024.
    """
    return (velocity.float() - (data - source)).square().mean(1)


class FlowQuantities(NamedTuple):
    """The same knowledge in four ways; each `(n, n_dim)`."""

    velocity: Tensor
    score: Tensor
    data: Tensor
    noise: Tensor


def flow_quantities(
    x_t: Tensor,
    t: float,
    *,
    velocity: Tensor | None = None,
    score: Tensor | None = None,
    data: Tensor | None = None,
    noise: Tensor | None = None,
) -> FlowQuantities:
    """Return velocity, score, expected data and expected noise from one of them.

    Parameters
    ----------
    x_t
        Points `(n, n_dim)` on lines from standard normal noise.
    t
        Time, strictly between 0 and 1: at the ends one of them cannot be told.
    velocity, score, data, noise
        Exactly one of them, `(n, n_dim)`.

    Raises
    ------
    ValueError
        If not exactly one is given, or the time is an end.

    References
    ----------
    Albergo, Boffi and Vanden-Eijnden, Stochastic interpolants, 2023.
    """
    given = [value for value in (velocity, score, data, noise) if value is not None]
    if len(given) != 1 or not 0 < t < 1:
        msg = f"{len(given)} quantities at t={t}; expected exactly one, and 0 < t < 1."
        raise ValueError(msg)
    if velocity is not None:
        data = x_t + (1 - t) * velocity
    elif score is not None:
        data = (x_t + (1 - t) ** 2 * score) / t
    elif noise is not None:
        data = (x_t - (1 - t) * noise) / t
    if data is None:  # pragma: no cover - one of the four was given
        raise AssertionError
    noise = (x_t - t * data) / (1 - t)
    return FlowQuantities(data - noise, -noise / (1 - t), data, noise)
