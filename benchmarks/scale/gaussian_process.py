"""`ConditionGP` on many conditions: time, memory, and accuracy beside one decomposition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import pandas as pd

from benchmarks.scale import Row, cpu_seconds, exponent, peak_gib
from scvi_perturb.data import Component, Condition, ScreenKeys
from scvi_perturb.data.request import RequestRow
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import ConditionGP
from scvi_perturb.predictors.gaussian_process.inducing import Inducing
from scvi_perturb.predictors.gaussian_process.signal import Spectrum
from scvi_perturb.predictors.profiles import TrainingProfiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scvi_perturb.predictors.gaussian_process.condition_gp import GPPrediction

    Floats = NDArray[np.float64]

MINUTES: Final = 10
GIB: Final = 6
N_FEATURES: Final = 32
N_PROGRAMMES: Final = 40
DEPTH: Final = 4_000


@dataclass(frozen=True)
class Screen:
    """A screen whose truth is known, summed up: perturbations by contexts, a part left out.

    A tenth of perturbations is left out everywhere, and an eighth of the other rows. Effects are
    programmes of genes; their sizes are a Gaussian process of features, and what is peculiar to a
    perturbation.
    """

    profiles: TrainingProfiles
    features: PerturbationFeatures
    requests: list[RequestRow]
    truth: Floats
    new: NDArray[np.bool_]

    @classmethod
    def simulated(cls, n_names: int, n_contexts: int, n_genes: int, *, truth: bool = False) -> Self:
        """Draw a screen; `truth` keeps the true change of each request."""
        random = np.random.default_rng(0)
        places = random.normal(size=(max(n_names // 10, 3), N_FEATURES))
        values = places[random.integers(len(places), size=n_names)]
        values += 0.5 * random.normal(size=values.shape)
        waves = random.normal(size=(N_FEATURES, 400)) / np.sqrt(2 * N_FEATURES)
        smooth = np.cos(values @ waves + random.uniform(0, 2 * np.pi, 400)) / np.sqrt(200)
        size = 0.4 * random.normal(size=N_PROGRAMMES) + 0.3 * random.normal(
            size=(n_names, N_PROGRAMMES)
        )
        size += smooth @ random.normal(size=(400, N_PROGRAMMES))
        programmes = random.normal(size=(N_PROGRAMMES, n_genes))
        programmes *= 0.2 * (random.random(programmes.shape) < 0.2)
        place = random.normal(size=(n_contexts, 3))
        turned = 1 + 0.3 * place @ random.normal(size=(3, N_PROGRAMMES))
        levels = random.normal(0, 1.5, n_genes) + place @ random.normal(0, 0.4, (3, n_genes))

        names = [f"p{i:05d}" for i in range(n_names)]
        conditions = [Condition((Component(name),)) for name in names]
        contexts = [(f"c{i:02d}",) for i in range(n_contexts)]
        kept = random.random((n_names, n_contexts)) < 7 / 8
        kept[::10] = False
        pairs = [(-1, c) for c in range(n_contexts)] + np.argwhere(kept).tolist()
        n_cells = random.integers(20, 200, len(pairs))
        n_cells[:n_contexts] = 2_000
        sums, variances = np.empty((2, len(pairs), n_genes))
        for i, (name, context) in enumerate(pairs):
            change = 0.0 if name < 0 else (size[name] * turned[context]) @ programmes
            share = _shares(levels[context] + change)
            sums[i] = random.poisson(DEPTH * n_cells[i] * share)
            found = sums[i] / sums[i].sum()
            variances[i] = (1e4 / (1 + 1e4 * found)) ** 2 * found / sums[i].sum()
        profiles = TrainingProfiles(
            keys=ScreenKeys("perturbation", context=("cell_type",)),
            var_names=pd.Index([f"g{i}" for i in range(n_genes)]),
            kind="pseudobulk",
            conditions=tuple(Condition(()) if p < 0 else conditions[p] for p, _ in pairs),
            contexts=tuple(contexts[c] for _, c in pairs),
            known=(Condition(()), *conditions),
            n_cells=n_cells,
            libraries=None,
            all_sums=sums,
            all_variances=variances.astype(np.float32),
        )
        asked = [(p, c) for p in range(n_names) for c in range(n_contexts)]
        changes = np.empty((0, n_genes))
        if truth:
            started = np.log1p(1e4 * _shares(levels))
            reached = [levels[c] + (size[p] * turned[c]) @ programmes for p, c in asked]
            changes = np.log1p(1e4 * _shares(np.array(reached))) - started[[c for _, c in asked]]
        store = PerturbationFeatures({"embedding": pd.DataFrame(values, index=names)})
        requests = [RequestRow(conditions[p], contexts[c]) for p, c in asked]
        return cls(profiles, store, requests, changes, ~kept.ravel())

    def table(self) -> pd.DataFrame:
        """Return all requests as a table."""
        return pd.DataFrame({
            "perturbation": [str(one.condition) for one in self.requests],
            "cell_type": [one.context[0] for one in self.requests],
        })  # fmt: skip


def _shares(levels: Floats) -> Floats:
    made = np.exp(levels - levels.max(axis=-1, keepdims=True))
    shares: Floats = made / made.sum(axis=-1, keepdims=True)
    return shares


def rows(*, quick: bool) -> Iterator[Row]:
    """Measure growth, accuracy at 800 conditions, and the two large screens."""
    for size in (200,) if quick else (800, 4_000):
        yield from _accuracy(size)
    sizes = (1_250, 2_500) if quick else (2_500, 5_000)
    found = [_whole(size, 2) for size in sizes]
    for size, seconds in zip(sizes, found, strict=True):
        yield Row(f"ConditionGP, {size} conditions x 2 contexts, fit and predict", seconds, "s")
    power = exponent(sizes, (found[0], found[1]))
    yield Row("ConditionGP, power of the number of conditions", power, "")
    for n_names, n_contexts in () if quick else ((500, 20), (10_000, 2)):
        minutes, peak = _whole(n_names, n_contexts) / 60, peak_gib()
        what = f"ConditionGP, {n_names} conditions x {n_contexts} contexts"
        yield Row(f"{what}, fit and predict", minutes, "min", f"<= {MINUTES}", minutes <= MINUTES)
        yield Row(f"{what}, peak", peak, "GiB", f"<= {GIB}", peak <= GIB)


def _whole(n_names: int, n_contexts: int) -> float:
    """Return the CPU seconds of a fit and a prediction of all conditions with their errors."""
    screen = Screen.simulated(n_names, n_contexts, 2_000)
    gp = ConditionGP(screen.features)
    fitting, _ = cpu_seconds(lambda: gp.fit_profiles(screen.profiles))
    held, asked = peak_gib(), screen.table()
    predicting, _ = cpu_seconds(lambda: gp.predict(asked))
    print(f"{n_names} x {n_contexts}: fit {fitting:.0f} s, {held:.2f} GiB; "
          f"predict {predicting:.0f} s, {peak_gib():.2f} GiB", flush=True)  # fmt: skip
    return fitting + predicting


def _accuracy(n_names: int) -> Iterator[Row]:
    """Compare inducing rows with one decomposition, hyperparameters being the same."""
    screen = Screen.simulated(n_names, 2, 1_000, truth=True)
    gp = ConditionGP(screen.features)
    seconds, _ = cpu_seconds(lambda: gp.fit_profiles(screen.profiles))
    yield Row(f"ConditionGP, {n_names} conditions x 2 contexts, fit", seconds, "s")
    made = gp.posterior
    points, outputs, fitted = made.points, made.outputs, made.fitted

    def decomposed() -> Spectrum:
        within = made.kernel.between(points, points)(fitted.theta) / fitted.unit
        return Spectrum.of(within, outputs.row_noise, outputs.values)

    def by_inducing() -> Inducing:
        return Inducing.of(made.kernel, points, outputs, fitted)

    makers: list[tuple[str, Callable[[], Spectrum | Inducing]]] = [
        ("one decomposition", decomposed),
        ("inducing rows", by_inducing),
    ]
    found = []
    for name, make in makers:
        fitting, spectrum = cpu_seconds(make)
        weights = spectrum.weights(fitted.signal.ratios)
        gp._posterior = replace(made, fitted=replace(fitted, spectrum=spectrum), weights=weights)
        predicting, answer = cpu_seconds(lambda: gp.predict_changes(screen.requests))
        yield Row(f"{n_names} conditions, {name}", fitting + predicting, "s")
        found.append(_quality(screen, answer))
    (error, cover), (other, covered) = found
    what, bar = f"inducing rows against exact, {n_names} conditions", n_names <= 800
    worse, apart = 100 * (other / error - 1), 100 * abs(covered - cover)
    yield Row(f"{what}: error of what was left out", worse, "%", "<= 1" if bar else "",
              worse <= 1 if bar else None, f"{other:.4f} against {error:.4f}")  # fmt: skip
    yield Row(f"{what}: coverage of 90 % intervals", apart, "points", "<= 1" if bar else "",
              apart <= 1 if bar else None, f"{covered:.4f} against {cover:.4f}")  # fmt: skip


def _quality(screen: Screen, found: GPPrediction) -> tuple[float, float]:
    """Return squared error by squared change, and the coverage of 90 % intervals."""
    truth, mean, std = (x[screen.new] for x in (screen.truth, found.mean, found.std))
    error = float(((mean - truth) ** 2).sum() / (truth**2).sum())
    return error, float((np.abs(mean - truth) < 1.645 * std).mean())
