"""Log-likelihoods of counts, evaluated at the non-zeros.

Negative binomial likelihoods need ratios of gamma functions. `lgamma(x + theta) - lgamma(theta)`
taken literally loses all digits in float32 once theta is large, and torch's `digamma` is slow on
CPUs. Here both come from Stirling's formula, whose remainder
`r(z) = lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2)` is a polynomial in `1 / z`. In float64
they are evaluated as written.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from scvi_perturb._checks import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Least-squares fits at Chebyshev nodes on 1 / z in (0, 1], highest power first: of z r(z), error
#: 7e-8, and of z^2 r'(z), error 4e-8.
_REMAINDER: Final = (-2.18725e-4, 5.82816e-4, 1.88621e-4, -2.829256e-3, 4.68e-6, 8.3333267e-2)
_SLOPE: Final = (
    -8.75419e-4,
    3.546859e-3,
    -4.987177e-3,
    9.1932e-5,
    8.34295e-3,
    -1.539e-6,
    -8.3333312e-2,
)


def _polynomial(coefficients: Sequence[float], u: Tensor) -> Tensor:
    value = u * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value.add_(coefficient).mul_(u)
    return value.add_(coefficients[-1])


def _digamma_excess_above_one(u: Tensor) -> Tensor:
    """Return `digamma(z) - log(z)` at `u = 1 / z`, `z >= 1`."""
    return _polynomial(_SLOPE, u).mul_(u).sub_(0.5).mul_(u)


def _stirling_remainder(theta: Tensor) -> Tensor:
    """Return `r(theta)`, `theta > 0`."""
    if theta.dtype == torch.float64:
        leading = (theta - 0.5) * torch.log(theta) - theta + 0.5 * math.log(2 * math.pi)
        return torch.lgamma(theta) - leading
    # r(z) = r(z + 1) + (z + 1/2) log(1 + 1 / z) - 1 moves the argument to where the fit holds.
    u = 1 / (theta + 1)
    return _polynomial(_REMAINDER, u).mul_(u) + (theta + 0.5) * torch.log1p(1 / theta) - 1


def _digamma_excess(theta: Tensor) -> Tensor:
    """Return `digamma(theta) - log(theta)`, `theta > 0`."""
    if theta.dtype == torch.float64:
        return torch.digamma(theta) - torch.log(theta)
    inverse = 1 / theta
    return _digamma_excess_above_one(1 / (theta + 1)) + torch.log1p(inverse) - inverse


def _log_rising(x: Tensor, theta: Tensor, remainder: Tensor) -> Tensor:
    """Return `lgamma(x + theta) - lgamma(theta) - x log(theta)` for `x >= 1`.

    `remainder` is `_stirling_remainder(theta)`; all have one shape.
    """
    if theta.dtype == torch.float64:
        return torch.lgamma(x + theta) - torch.lgamma(theta) - x * torch.log(theta)
    z = x + theta
    u = 1 / z
    value = torch.log1p(x / theta).mul_(z.sub_(0.5)).sub_(x)
    return value.add_(_polynomial(_REMAINDER, u).mul_(u)).sub_(remainder)


def _log_rising_slope(x: Tensor, theta: Tensor, excess: Tensor) -> Tensor:
    """Return `digamma(x + theta) - digamma(theta)` for `x >= 1`.

    `excess` is `_digamma_excess(theta)`; all have one shape.
    """
    if theta.dtype == torch.float64:
        return torch.digamma(x + theta) - torch.digamma(theta)
    value = _digamma_excess_above_one(1 / (x + theta))
    return value.add_(torch.log1p(x / theta)).sub_(excess)


#: Added to means before their logarithm, as scvi.distributions does.
_EPSILON: Final = 1e-8


class _Counts(NamedTuple):
    """The non-zero counts of a batch: values, positions in the flattened matrix, genes."""

    values: Tensor
    flat: Tensor
    genes: Tensor

    @classmethod
    def gather(
        cls, x: Tensor, nonzero: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> _Counts:
        """Take the non-zero counts out of `x`, at `nonzero` (rows, columns) if they are known."""
        rows, genes = torch.nonzero(x, as_tuple=True) if nonzero is None else nonzero
        rows, genes = rows.long(), genes.long()
        flat = torch.add(genes, rows, alpha=x.shape[-1])
        return cls(x.reshape(-1).index_select(0, flat).to(dtype), flat, genes)

    def take(self, parameter: Tensor) -> Tensor:
        """Return a parameter `(n_genes,)` or `(n_cells, n_genes)` at the non-zeros."""
        if parameter.ndim == 1:
            return parameter.index_select(0, self.genes)
        return parameter.reshape(-1).index_select(0, self.flat)

    def take_function(self, function: Callable[[Tensor], Tensor], parameter: Tensor) -> Tensor:
        """Return a function of a parameter at the non-zeros, evaluated where it is cheaper."""
        if parameter.ndim == 1:
            return self.take(function(parameter))
        return function(self.take(parameter))

    def row_sums(self, terms: Tensor, like: Tensor) -> Tensor:
        """Sum terms of the non-zeros by row; a dense detour is faster than `index_add`."""
        return torch.zeros_like(like).view(-1).scatter_(0, self.flat, terms).view_as(like).sum(-1)


def _log_prob(
    counts: _Counts, ratio: Tensor, theta: Tensor, log_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the log-likelihood, dense `log(1 + ratio)`, and at the non-zeros theta and ratio.

    `log_mean` is the logarithm of the mean at the non-zeros.
    """
    log_ratio = torch.log1p(ratio)
    theta_at, ratio_at = counts.take(theta), counts.take(ratio)
    remainder = counts.take_function(_stirling_remainder, theta)
    terms = _log_rising(counts.values, theta_at, remainder)
    terms.sub_(torch.lgamma(counts.values + 1))
    terms.addcmul_(counts.values, log_mean - torch.log1p(ratio_at))
    result = counts.row_sums(terms, ratio)
    if theta.ndim == 1:
        result -= torch.mv(log_ratio, theta)
    else:
        result -= (log_ratio * theta).sum(-1)
    return result, log_ratio, theta_at, ratio_at


def _theta_gradient(
    counts: _Counts, theta: Tensor, at: tuple[Tensor, Tensor], dense: Tensor, grad: Tensor
) -> Tensor:
    """Return the gradient in theta from the derivative of the dense part, which is overwritten.

    `at` holds theta and ratio at the non-zeros, `grad` is `(n_cells,)`.
    """
    theta_at, ratio_at = at
    excess = counts.take_function(_digamma_excess, theta)
    terms = _log_rising_slope(counts.values, theta_at, excess)
    terms.sub_(counts.values / (theta_at * (1 + ratio_at)))
    dense.view(-1).scatter_add_(0, counts.flat, terms)
    return torch.mv(dense.T, grad) if theta.ndim == 1 else dense.mul_(grad[:, None])


class _NegativeBinomial(torch.autograd.Function):
    """Log-likelihood `(n_cells,)` from means, inverse dispersions and logits of zero inflation."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives contexts no type
        counts: _Counts,
        mean: Tensor,
        theta: Tensor,
        zi_logits: Tensor | None,
    ) -> Tensor:
        """Return the log-likelihood of each cell."""
        with torch.autocast(mean.device.type, enabled=False):
            ratio = mean * theta.reciprocal() if theta.ndim == 1 else mean / theta
            log_mean = torch.log(counts.take(mean).add_(_EPSILON))
            result, log_ratio, *at = _log_prob(counts, ratio, theta, log_mean)
            lifted = None
            if zi_logits is not None:
                lifted = torch.addcmul(zi_logits, log_ratio, theta)
                # The non-zeros are no zeros: a logit of -inf takes them out of sum and gradients.
                lifted.view(-1).index_fill_(0, counts.flat, -torch.inf)
                result += (softplus(lifted) - softplus(zi_logits)).sum(-1)
        ctx.save_for_backward(*counts, theta, ratio, log_ratio, *at, zi_logits, lifted)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients in means, inverse dispersions and logits."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        counts, (theta, ratio, log_ratio, *at) = _Counts(*saved[:3]), saved[3:8]
        zi_logits, lifted = ctx.saved_tensors[8:]
        d_mean = d_theta = d_zi = observed = None
        with torch.autocast(ratio.device.type, enabled=False):
            keep = (ratio + 1).reciprocal_()
            if zi_logits is not None:
                dropped = torch.sigmoid(lifted)
                observed = 1 - dropped
                d_zi = dropped.sub_(torch.sigmoid(zi_logits)).mul_(grad[:, None])
            if ctx.needs_input_grad[2]:
                dense = (ratio * keep).sub_(log_ratio)
                dense = dense if observed is None else dense.mul_(observed)
                d_theta = _theta_gradient(counts, theta, (at[0], at[1]), dense, grad)
            if ctx.needs_input_grad[1]:
                theta_at, ratio_at = at
                terms = (ratio_at * theta_at).add_(_EPSILON).reciprocal_()
                terms.sub_(1 / (theta_at * (1 + ratio_at))).mul_(counts.values)
                d_mean = keep.neg_() if observed is None else keep.neg_().mul_(observed)
                d_mean.view(-1).scatter_add_(0, counts.flat, terms)
                d_mean.mul_(grad[:, None])
        return None, d_mean, d_theta, d_zi


@lru_cache(maxsize=8)
def _coefficients(dtype: torch.dtype, device: torch.device) -> tuple[tuple[Tensor, ...], ...]:
    """Return the coefficients of both fits as tensors: a number is converted at every use."""
    with torch.inference_mode(mode=False):
        fits = (torch.tensor(fit, dtype=dtype, device=device) for fit in (_REMAINDER, _SLOPE))
        return tuple(fit.unbind() for fit in fits)


def _horner(coefficients: tuple[Tensor, ...], u: Tensor) -> Tensor:
    value = torch.addcmul(coefficients[1], u, coefficients[0])
    for coefficient in coefficients[2:]:
        torch.addcmul(coefficient, value, u, out=value)
    return value


class _AtNonZeros(NamedTuple):
    """What the derivative needs of the non-zeros: rows, `theta`, mean over theta, `x + theta`."""

    rows: Tensor
    theta: Tensor
    ratio: Tensor
    total: Tensor
    log_total: Tensor


def _non_zero_terms(
    counts: _Counts, rows: Tensor, ratio: Tensor, theta: Tensor
) -> tuple[Tensor, _AtNonZeros]:
    """Return the terms of the log-likelihood at the non-zeros, and what they were made of.

    `ratio` is the mean over theta at the non-zeros, `theta` one value a gene.
    """
    theta_at, x = counts.take(theta), counts.values
    total, mean = x + theta_at, ratio * theta_at
    log_total = torch.log1p(x / theta_at)
    log_mean = torch.log(mean + _EPSILON).sub_(torch.log1p(ratio)).sub_(1)
    inverse = total.reciprocal()
    # Of lgamma(x + theta) - lgamma(theta) - x log(theta), see `_log_rising`.
    terms = _horner(_coefficients(theta.dtype, theta.device)[0], inverse).mul_(inverse)
    terms.addcmul_(total - 0.5, log_total).addcmul_(x, log_mean)
    terms.sub_(counts.take(_stirling_remainder(theta))).sub_(torch.lgamma(x + 1))
    return terms, _AtNonZeros(rows, theta_at, ratio, total, log_total)


def _non_zero_slopes(counts: _Counts, at: _AtNonZeros, theta: Tensor) -> Tensor:
    """Return the derivative of the terms of the non-zeros in theta."""
    inverse = at.total.reciprocal()
    slope = _horner(_coefficients(theta.dtype, theta.device)[1], inverse)
    slope = slope.mul_(inverse).sub_(0.5).mul_(inverse).add_(at.log_total)
    slope.sub_(counts.take(_digamma_excess(theta)))
    return slope.sub_(counts.values / torch.addcmul(at.theta, at.theta, at.ratio))


def _row_sums(terms: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """Sum terms by row; Apple's devices cannot reduce segments."""
    if terms.device.type == "mps":
        return terms.new_zeros(len(starts) - 1).index_add_(0, rows, terms)
    found: Tensor = torch.segment_reduce(terms, "sum", offsets=starts, initial=0)
    return found


class _ProportionsNegativeBinomial(torch.autograd.Function):
    """Log-likelihood `(n_cells,)` from logits of proportions, library sizes and dispersions.

    With `r` the mean over theta, `s = r / (1 + r)` and `p` the proportions, the derivative in
    `log p` is `a = x / (1 + r) - theta s`, dense in the second term only, and that in the logits
    is `a - p sum(a)`, where `p` is `r theta` over the library: `r` is all that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives contexts no type
        counts: _Counts,
        starts: Tensor,
        logits: Tensor,
        library: Tensor,
        theta: Tensor,
    ) -> Tensor:
        """Return the log-likelihood of each cell."""
        with torch.autocast(logits.device.type, enabled=False):
            shares = torch.softmax(logits, dim=-1, dtype=theta.dtype)
            others = shares[:, len(theta) :].clone()
            ratio = shares[:, : len(theta)].contiguous() if others.numel() else shares
            ratio.mul_(theta.reciprocal()).mul_(library[:, None])
            log_ratio = torch.log1p(ratio)
            cells = torch.arange(len(logits), device=logits.device)
            cells = torch.repeat_interleave(cells, starts.diff(), output_size=len(counts.values))
            terms, at = _non_zero_terms(counts, cells, counts.take(ratio), theta)
            result = _row_sums(terms, cells, starts)
            result.addmv_(log_ratio, theta, alpha=-1)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(*counts, *at, starts, others, ratio, log_ratio, library, theta)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients in logits and inverse dispersions."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        counts, at = _Counts(*saved[:3]), _AtNonZeros(*saved[3:8])
        starts, others, ratio, log_ratio, library, theta = saved[8:]
        with torch.autocast(grad.device.type, enabled=False):
            share = ratio + 1
            torch.div(ratio, share, out=share)
            d_theta = torch.mv(share.T, grad).addmv_(log_ratio.T, grad, alpha=-1)
            own = counts.values / (at.ratio + 1)
            total = _row_sums(own, at.rows, starts)
            total.addmv_(share, theta, alpha=-1)
            # Minus theta (s + r sum(a) / library), in the memory of s.
            scale = (total / library.clamp_min(_EPSILON))[:, None]
            d_logits = share.addcmul_(ratio, scale).mul_(theta).mul_(-grad[:, None])
            grad_at = grad.index_select(0, at.rows)
            d_logits.view(-1).scatter_add_(0, counts.flat, own.mul_(grad_at))
            if others.numel():
                d_others = others.mul(-(total * grad)[:, None])
                d_logits = torch.cat([d_logits, d_others], dim=1)
            slope = _non_zero_slopes(counts, at, theta).mul_(grad_at)
            d_theta.index_add_(0, counts.genes, slope)
        return None, None, d_logits.to(ctx.dtype), None, d_theta


@checked
def nb_log_prob_of_logits(
    counts: tuple[Tensor, Tensor, Tensor], logits: Tensor, library: Tensor, theta: Tensor
) -> Tensor:
    """Return the negative binomial log-likelihood of each cell under proportions of its library.

    As :func:`nb_log_prob` at `mu = library softmax(logits)`, in about a third of the time.

    `counts`: Compressed rows: non-zero values, their columns, and where each row starts, with the
    number of all as last, `(n_cells + 1,)`. `logits`: Unnormalised log proportions, `(n_cells,
    n_genes)`, or with columns after those for what is not counted. `library`: Library sizes,
    `(n_cells,)`. `theta`: Inverse dispersions, > 0, `(n_genes,)`. Returns log-likelihood
    `(n_cells,)` in nats; gradients are of logits and dispersions. Raises `ValueError`: If the
    shapes do not match.
    """
    values, columns, starts = counts
    n_cells, n_columns = logits.shape
    if len(starts) != n_cells + 1 or library.shape != (n_cells,) or len(theta) > n_columns:
        msg = (
            f"{len(starts)} starts of rows, library sizes {tuple(library.shape)} and "
            f"{len(theta)} dispersions do not fit logits {tuple(logits.shape)}; expected "
            f"{n_cells + 1}, ({n_cells},) and at most {n_columns}."
        )
        raise ValueError(msg)
    dtype = _real(logits, theta)
    n_genes = len(theta)
    places = torch.arange(0, n_cells * n_genes, n_genes, device=columns.device)
    flat = torch.repeat_interleave(places, starts.diff(), output_size=len(columns)).add_(columns)
    found = _Counts(values.to(dtype), flat, columns)
    return cast(
        "Tensor",
        _ProportionsNegativeBinomial.apply(
            found, starts, logits, library.to(dtype), theta.to(dtype)
        ),
    )


def _real(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 if any tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check_shapes(x: Tensor, parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        shapes = [x.shape, x.shape[-1:]] if name in {"theta", "scale"} else [x.shape]
        if parameter.shape not in shapes:
            msg = (
                f"{name} has shape {tuple(parameter.shape)}; for counts of shape {tuple(x.shape)} "
                f"it is expected to have {' or '.join(str(tuple(shape)) for shape in shapes)}."
            )
            raise ValueError(msg)


@checked
def nb_log_prob(
    x: Tensor, mu: Tensor, theta: Tensor, *, nonzero: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the negative binomial log-likelihood of each cell, summed over genes.

    `x`: Counts `(n_cells, n_genes)`, integers of any dtype. `mu`: Means `(n_cells, n_genes)`, >= 0.
    `theta`: Inverse dispersions, > 0, `(n_genes,)` or `(n_cells, n_genes)`; the variance is `mu +
    mu^2 / theta`. `nonzero`: Rows and columns of the non-zero counts, each position once, as
    `torch.nonzero(x, as_tuple=True)` gives them; found from `x` when None, which takes as long as
    the rest. Returns log-likelihood `(n_cells,)` in nats. Raises `ValueError`: If the shapes do not
    match.
    """
    _check_shapes(x, {"mu": mu, "theta": theta})
    dtype = _real(mu, theta)
    counts = _Counts.gather(x, nonzero, dtype)
    return cast("Tensor", _NegativeBinomial.apply(counts, mu.to(dtype), theta.to(dtype), None))


@checked
def zinb_log_prob(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor,
    *,
    nonzero: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the zero-inflated negative binomial log-likelihood of each cell, summed over genes.

    `x`, `mu`, `theta`, `nonzero`: As for :func:`nb_log_prob`, as are the result and the error.
    `zi_logits`: Logits of the probability that a count is replaced by zero `(n_cells, n_genes)`.
    """
    _check_shapes(x, {"mu": mu, "theta": theta, "zi_logits": zi_logits})
    dtype = _real(mu, theta, zi_logits)
    counts = _Counts.gather(x, nonzero, dtype)
    log_prob = _NegativeBinomial.apply(counts, mu.to(dtype), theta.to(dtype), zi_logits.to(dtype))
    return cast("Tensor", log_prob)


@checked
def poisson_log_prob(
    x: Tensor, mu: Tensor, *, nonzero: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the Poisson log-likelihood of each cell, summed over genes.

    `x`, `mu`, `nonzero`: As for :func:`nb_log_prob`, as are the result and the error.
    """
    _check_shapes(x, {"mu": mu})
    mean = mu.to(_real(mu))
    counts = _Counts.gather(x, nonzero, mean.dtype)
    log_mean = torch.log(counts.take(mean) + _EPSILON)
    terms = counts.values * log_mean - torch.lgamma(counts.values + 1)
    return counts.row_sums(terms, mean) - mean.sum(-1)


@checked
def normal_log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the normal log-likelihood of each cell, summed over genes.

    The result and the error are as for :func:`nb_log_prob`.

    `x`: Values `(n_cells, n_genes)`, for example log-normalised expression or signatures. `loc`:
    Means `(n_cells, n_genes)`. `scale`: Standard deviations, > 0, `(n_genes,)` or `(n_cells,
    n_genes)`.
    """
    _check_shapes(x, {"loc": loc, "scale": scale})
    dtype = _real(x, loc, scale)
    width = scale.to(dtype)
    error = (x.to(dtype) - loc.to(dtype)) / width
    return -(0.5 * error.square() + torch.log(width) + 0.5 * math.log(2 * math.pi)).sum(-1)
