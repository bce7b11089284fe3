"""Direction and magnitude of the mean change: known answers and invariances."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb.metrics import (
    nmse,
    nmse_terms,
    pearson_delta,
    pseudobulk,
    pseudobulk_variance,
    top_genes,
)


@pytest.fixture
def profiles():
    rng = np.random.default_rng(0)
    control = rng.gamma(1, 1, 500)
    return control, control + rng.normal(0, 0.5, 500)


def test_top_genes_are_those_with_the_largest_true_change():
    control, observed = np.zeros(4), np.array([0.1, -3.0, 2.0, 0.0])
    assert top_genes(observed, control, 2).tolist() == [1, 2]
    assert top_genes(observed, control, 9).tolist() == [1, 2, 0, 3]
    with pytest.raises(ValueError, match="at least 1"):
        top_genes(observed, control, 0)


def test_pearson_is_numpys(profiles):
    control, observed = profiles
    predicted = observed + np.random.default_rng(1).normal(0, 0.5, 500)
    expected = np.corrcoef(predicted - control, observed - control)[0, 1]
    assert pearson_delta(predicted, observed, control) == pytest.approx(expected)
    genes = np.argsort(-np.abs(observed - control))[:50]
    expected = np.corrcoef((predicted - control)[genes], (observed - control)[genes])[0, 1]
    assert pearson_delta(predicted, observed, control, k=50) == pytest.approx(expected)


def test_pearson_of_perfect_scaled_and_reversed_change(profiles):
    control, observed = profiles
    change = observed - control
    assert pearson_delta(observed, observed, control) == pytest.approx(1)
    assert pearson_delta(control + 3 * change, observed, control) == pytest.approx(1)
    assert pearson_delta(control - change, observed, control) == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_a_constant_change_correlates_with_nothing(profiles, constant):
    control, observed = profiles
    assert np.isnan(pearson_delta(control + constant, observed, control))
    assert np.isnan(pearson_delta(observed, control + constant, control))


def test_rounding_of_32_bits_is_no_change(profiles):
    control, observed = profiles
    rounded = control.astype(np.float32).astype(np.float64)
    assert (rounded != control).any()
    assert np.isnan(pearson_delta(rounded, observed, control))
    small = control + 1e-3 * (observed - control)
    assert pearson_delta(small, observed, control) == pytest.approx(1)


def test_nmse_of_no_change_is_one_exactly(profiles):
    control, observed = profiles
    assert nmse(control, observed, control) == 1.0
    assert nmse(control, observed, control, observed_variance=np.full(500, 0.01)) == 1.0


def test_nmse_of_perfect_half_and_tripled_change(profiles):
    control, observed = profiles
    change = observed - control
    assert nmse(observed, observed, control) == 0
    assert nmse(control + change / 2, observed, control) == pytest.approx(0.25)
    assert nmse(control + 3 * change, observed, control) == pytest.approx(4)


def test_nmse_is_freed_of_the_noise_of_few_cells():
    """The mean over experiments is the error that infinitely many cells would show."""
    rng = np.random.default_rng(0)
    control_truth, truth = rng.gamma(1, 1, 300), rng.gamma(1, 1, 300)
    predicted = truth + rng.normal(0, 0.3, 300)
    exact = nmse(predicted, truth, control_truth)
    found, raw = [], []
    for _ in range(60):
        cells = truth + rng.normal(0, 2, (10, 300))
        controls = control_truth + rng.normal(0, 2, (10, 300))
        observed, control = cells.mean(0), controls.mean(0)
        raw.append(nmse(predicted, observed, control))
        found.append(
            nmse(
                predicted,
                observed,
                control,
                observed_variance=cells.var(0, ddof=1) / 10,
                control_variance=controls.var(0, ddof=1) / 10,
            )
        )
    assert np.mean(found) == pytest.approx(exact, abs=0.02)
    assert np.mean(raw) > exact + 0.1


def test_measured_controls_score_above_one_against_the_noise_free_effect(profiles):
    control, observed = profiles
    assert nmse(control, observed, control, control_variance=np.full(500, 0.02)) > 1


def test_nmse_without_an_effect_is_undefined(profiles):
    control, observed = profiles
    assert np.isnan(nmse(observed, control, control))
    assert np.isnan(nmse(observed, observed, control, observed_variance=10.0))


@pytest.mark.parametrize("metric", [nmse, pearson_delta])
def test_profiles_must_agree_in_length(metric, profiles):
    control, observed = profiles
    with pytest.raises(ValueError, match="same genes"):
        metric(observed[:-1], observed, control)


@pytest.mark.parametrize("metric", [nmse, pearson_delta])
def test_order_of_genes_does_not_matter(metric, profiles):
    control, observed = profiles
    predicted = control + 0.5 * (observed - control) ** 2
    order = np.random.default_rng(1).permutation(500)
    shuffled = metric(predicted[order], observed[order], control[order])
    assert shuffled == pytest.approx(metric(predicted, observed, control))


def test_terms_are_what_nmse_divides(profiles):
    control, observed = profiles
    predicted = observed + np.random.default_rng(1).normal(0, 0.3, 500)
    noise = {"observed_variance": np.linspace(0, 0.02, 500), "control_variance": 0.001}
    error, effect = nmse_terms(predicted, observed, control, **noise)
    assert nmse(predicted, observed, control, **noise) == error / effect
    assert error == pytest.approx(((predicted - observed) ** 2).sum() - 5)
    assert effect == pytest.approx(((control - observed) ** 2).sum() - 5 - 0.5)


def test_pasted_control_has_the_error_of_no_change_exactly(profiles):
    control, observed = profiles
    variance = np.random.default_rng(2).gamma(1, 0.01, (2, 500))
    own = {"observed_variance": 2 * variance[0], "control_variance": variance[1]}
    error, effect = nmse_terms(control, observed, control, predicted_variance=variance[1], **own)
    assert error == effect
    scarce, _ = nmse_terms(control, observed, control, predicted_variance=9 * variance[1], **own)
    assert scarce == pytest.approx(effect + variance[1].sum() - 2 * variance[0].sum())


def test_scatter_of_the_prediction_is_forgiven_up_to_that_of_the_real_cells(profiles):
    control, observed = profiles
    predicted = observed + 0.2
    errors = [
        nmse_terms(predicted, observed, control, predicted_variance=noise, observed_variance=0.01)[
            0
        ]
        for noise in (0.0, 0.004, 0.01, 0.5, np.full(500, 0.5), np.nan)
    ]
    raw = 500 * 0.04
    expected = [raw - 5, raw - 7, raw - 10, raw - 10, raw - 10, raw - 5]
    np.testing.assert_allclose(errors, expected)


def test_unknown_noise_of_the_real_condition_leaves_no_terms(profiles):
    control, observed = profiles
    error, effect = nmse_terms(observed, observed, control, observed_variance=np.nan)
    assert np.isnan(error)
    assert np.isnan(effect)
    assert np.isnan(nmse(observed, observed, control, observed_variance=np.nan))


def test_kept_genes_alone_count_for_error_and_noise(profiles):
    control, observed = profiles
    kept = np.arange(500) != 3
    spoiled, variance = observed.copy(), np.full(500, 0.01)
    spoiled[3] += 100
    noise = {"observed_variance": variance, "control_variance": 0.02, "predicted_variance": 0.005}
    made = nmse_terms(spoiled, observed, control, kept=kept, **noise)
    noise["observed_variance"] = variance[kept]
    assert made == nmse_terms(observed[kept], observed[kept], control[kept], **noise)


def test_terms_of_a_replicate_are_free_of_noise():
    """Summed over conditions: a replicate has no error, as many cells as it may have."""
    rng = np.random.default_rng(0)
    sums = np.zeros(2)
    for _ in range(60):
        means = [np.ones(200), np.ones(200), np.zeros(200)]
        cells = [mean + rng.normal(0, 3, (12, 200)) for mean in means]
        variances = [x.var(0, ddof=1) / 12 for x in cells]
        names = ("predicted_variance", "observed_variance", "control_variance")
        profiles = [x.mean(0) for x in cells]
        sums += nmse_terms(*profiles, **dict(zip(names, variances, strict=True)))
    assert sums[1] / 60 == pytest.approx(200, rel=0.05)
    # The cap forgives the lesser of two equal noises: slightly less than the one.
    assert 0 < sums[0] / sums[1] < 0.08


def test_terms_agree_with_cell_eval():
    """Sums over genes, against means of genes; all genes, as they keep the own gene's noise."""
    delta = pytest.importorskip("cell_eval2.metrics.delta", reason="cell-eval2 is not installed")
    prep = pytest.importorskip("cell_eval2.prep", reason="cell-eval2 is not installed")
    rng = np.random.default_rng(0)
    n_genes, total = 80, 5e4
    profile = rng.gamma(0.5, 1, n_genes)
    sides = []
    for factor in (1.3, 1.7):
        shares = {"non-targeting": profile, "a": profile * factor ** rng.normal(size=n_genes)}
        shares["b"] = profile * factor ** rng.normal(size=n_genes)
        counts = [rng.poisson(5 * shares[name], (30 + 9 * len(name), n_genes)) for name in shares]
        labels = np.repeat(list(shares), [len(x) for x in counts])
        obs = pd.DataFrame({"target": labels}, index=[str(i) for i in range(len(labels))])
        sides.append(AnnData(sparse.csr_matrix(np.vstack(counts), dtype=np.float32), obs=obs))
    bulks, moments = [], []
    for side in sides:
        *bulk, moment = prep.pseudobulk_bulk_lognorm_with_moments(
            side, "target", bulk_target_sum=total
        )
        bulks.append(tuple(bulk))
        moments.append(moment)
    given = {"real_bulk": bulks[1], "real_moments": moments[1], "comparator": "bulk_lognorm"}
    both = {"pred_bulk": bulks[0], "pred_moments": moments[0]}
    errors, effects = delta.mse_unbiased(**given, **both), delta.distance_unbiased(**given)
    for name in ("a", "b"):
        cells = [sides[0][sides[0].obs["target"] == name].X]
        cells += [sides[1][sides[1].obs["target"] == x].X for x in (name, "non-targeting")]
        means = [pseudobulk(x, target_sum=total) for x in cells]
        noise = [pseudobulk_variance(x, target_sum=total) for x in cells]
        error, effect = nmse_terms(
            *means,
            predicted_variance=noise[0],
            observed_variance=noise[1],
            control_variance=noise[2],
        )
        assert effect / n_genes == pytest.approx(effects[name], rel=1e-9)
        uncapped = error + min(noise[0].sum(), noise[1].sum()) - noise[0].sum()
        assert uncapped / n_genes == pytest.approx(errors[name], rel=1e-9)
