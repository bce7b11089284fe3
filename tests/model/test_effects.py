"""Mean profiles, effects, and intervals that cover what they say they cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scvi_perturb.model.base.draw import Drawn, effect_blocks, effects_adata, expected_proportions
from scvi_perturb.model.base.reference import Plan
from scvi_perturb.module import CountParameters
from tests.model._small import make_reference, make_request, make_screen

CONTROL = np.array([0.4, 0.3, 0.2, 0.05, 0.04, 0.01])
FACTOR = np.array([1.0, 0.5, 1.5, 2.0, 0.25, 4.0])
PERTURBED = CONTROL * FACTOR / (CONTROL @ FACTOR)
GENES = [f"g{i}" for i in range(len(CONTROL))]


def effects(shares, counts, library, *, chunk=64, interval=0.9):
    """Return the effects of rows of `n` drawn cells and `m` control cells.

    `shares (rows, n, genes)`, `counts (rows, m, genes)`, `library (rows, m)`; each row's cells
    start from its own controls.
    """
    n_rows, n, n_genes = shares.shape
    m = counts.shape[1]
    start = np.concatenate([np.resize(np.arange(m), n) + m * row for row in range(n_rows)])
    reference = make_reference(
        counts.reshape(-1, n_genes), ["T"] * (n_rows * m), library.reshape(-1)
    )
    reference.counts = sparse.csr_matrix(reference.counts)
    rows, draws = np.repeat(np.arange(n_rows), n), np.tile(np.arange(n), n_rows)
    plan = Plan(make_request(*["A"] * n_rows), reference, rows, start, draws)
    flat = torch.from_numpy(shares.reshape(-1, n_genes)).double()
    size = torch.full((len(flat),), 500.0, dtype=torch.float64)

    def drawn():
        for cells in np.array_split(np.arange(len(flat)), max(1, len(flat) // chunk)):
            mean = flat[cells] * size[cells][:, None]
            yield Drawn(cells, size[cells], CountParameters(mean, torch.ones(n_genes), None))

    return effects_adata(
        effect_blocks(drawn(), plan, likelihood="nb", interval=interval),
        plan.request,
        make_screen(genes=GENES),
        n_cells=n,
    )


def experiment(n_rows, n, m, seed=0):
    """Draw cells and controls of a known model: Gamma-Poisson around known proportions."""
    random = np.random.default_rng(seed)
    shares = PERTURBED * random.gamma(4.0, 1 / 4, (n_rows, n, len(GENES)))
    library = random.lognormal(7, 0.4, (n_rows, m))
    rate = CONTROL * random.gamma(4.0, 1 / 4, (n_rows, m, len(GENES)))
    counts = random.poisson(rate * library[..., None]).astype(np.float32)
    return shares, counts, library


TRUTH = np.log1p(1e4 * PERTURBED) - np.log1p(1e4 * CONTROL)


@pytest.mark.parametrize(("n", "m"), [(80, 60), (200, 25)])
@pytest.mark.parametrize("interval", [0.9, 0.5])
def test_intervals_cover_the_true_effect_as_often_as_they_say(n, m, interval):
    n_rows = 150
    found = effects(*experiment(n_rows, n, m), interval=interval)
    covered = (found.layers["lower"] <= TRUTH) & (found.layers["upper"] >= TRUTH)
    # 900 independent intervals; the influence of a cell is linear to first order only.
    noise = np.sqrt(interval * (1 - interval) / covered.size)
    assert interval - 0.02 - 3 * noise < covered.mean() < interval + 3 * noise


def test_standard_errors_are_those_of_repetitions():
    found = effects(*experiment(150, 80, 60))
    spread = found.layers["lfc"].std(axis=0, ddof=1)
    # A standard deviation of 150 repetitions is known to 6 %.
    np.testing.assert_allclose(found.layers["std"].mean(axis=0), spread, rtol=0.2)
    bias = found.layers["lfc"].mean(axis=0) - TRUTH
    assert np.abs(bias / (spread / np.sqrt(150))).max() < 4


def test_effects_agree_with_their_formula():
    shares, counts, library = experiment(3, 20, 15)
    found = effects(shares, counts, library)
    size = library[:, np.resize(np.arange(15), 20)]
    mean = (shares * size[..., None]).sum(axis=1) / size.sum(axis=1)[:, None]
    profile = np.log1p(1e4 * mean)
    control = np.log1p(1e4 * counts.sum(axis=1) / library.sum(axis=1)[:, None])
    np.testing.assert_allclose(found.X, profile, rtol=1e-5)
    np.testing.assert_allclose(found.layers["lfc"], profile - control, atol=1e-4)
    assert found.obs["n_cells"].tolist() == [20] * 3
    assert found.var_names.tolist() == GENES


def test_order_within_the_interval():
    found = effects(*experiment(40, 2, 2))
    low, middle, high = (found.layers[key] for key in ("lower", "lfc", "upper"))
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_size_of_chunks_and_other_rows_do_not_matter():
    made = experiment(3, 20, 15)
    whole, pieces = effects(*made, chunk=1000), effects(*made, chunk=7)
    for key in ("lfc", "lower", "upper", "std"):
        np.testing.assert_allclose(whole.layers[key], pieces.layers[key], rtol=1e-6)
    first = effects(*(part[:1] for part in made))
    np.testing.assert_allclose(first.layers["lower"], whole.layers["lower"][:1], rtol=1e-6)


def test_standard_errors_are_those_of_a_bootstrap_over_reference_cells():
    shares, counts, library = (part[0] for part in experiment(1, 120, 60))
    found = effects(shares[None], counts[None], library[None]).layers["std"][0]
    place = np.resize(np.arange(60), 120)
    expected = shares * library[place][:, None]
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 4000)
    drawn = weights[:, place]
    predicted = (drawn @ expected) / (drawn @ library[place])[:, None]
    observed = (weights @ counts) / (weights @ library)[:, None]
    spread = (np.log1p(1e4 * predicted) - np.log1p(1e4 * observed)).std(axis=0)
    # 4,000 bootstraps know a standard deviation to 1.1 %; their variance lacks a factor 59/60.
    np.testing.assert_allclose(found, spread * np.sqrt(60 / 59), rtol=0.05)


def test_more_cells_are_more_sure():
    few, many = (effects(*experiment(20, n, n)).layers["std"].mean(axis=0) for n in (20, 320))
    np.testing.assert_allclose(few / many, 4, rtol=0.25)


def test_one_control_gives_an_effect_and_no_interval():
    found = effects(*experiment(2, 1, 1))
    assert np.isfinite(found.X).all()
    assert np.isfinite(found.layers["lfc"]).all()
    assert all(np.isnan(found.layers[key]).all() for key in ("lower", "upper", "std"))


def test_intervals_are_of_the_difference_from_the_cells_own_reference():
    """Drawn cells that keep their reference's state differ less from it than apart."""
    random = np.random.default_rng(3)
    n_rows, n = 100, 60
    state = CONTROL * random.gamma(2.0, 1 / 2, (n_rows, n, len(GENES)))
    library = np.full((n_rows, n), 1000.0)
    counts = (state * library[..., None]).astype(np.float32)
    scatter = random.gamma(50.0, 1 / 50, state.shape)
    found = effects(state * FACTOR / (CONTROL @ FACTOR) * scatter, counts, library)
    covered = (found.layers["lower"] <= TRUTH) & (found.layers["upper"] >= TRUTH)
    noise = np.sqrt(0.9 * 0.1 / covered.size)
    assert 0.85 - 3 * noise < covered.mean() < 0.95 + 3 * noise


def test_controls_that_are_not_used_do_not_count():
    shares, counts, library = experiment(1, 5, 15)
    found = effects(shares, counts, library)
    used = effects(shares, counts[:, :5], library[:, :5])
    np.testing.assert_allclose(found.layers["lfc"], used.layers["lfc"], rtol=1e-6)


def parameters(zero_logits=None):
    mean = torch.tensor([[2.0, 8.0], [30.0, 10.0]])
    library = torch.tensor([10.0, 40.0])
    return Drawn(np.arange(2), library, CountParameters(mean, torch.ones(2), zero_logits))


def test_expected_shares_are_those_of_the_likelihood():
    expected = np.array([[0.2, 0.8], [0.75, 0.25]])
    for likelihood in ("nb", "poisson"):
        np.testing.assert_allclose(expected_proportions(parameters(), likelihood), expected)
    zeros = torch.tensor([[0.0, 100.0], [-100.0, 0.0]])
    found = expected_proportions(parameters(zeros), "zinb")
    np.testing.assert_allclose(found, expected * [[0.5, 0], [1, 0.5]], atol=1e-7)
    log1p = Drawn(
        np.arange(1),
        torch.tensor([10.0]),
        CountParameters(torch.tensor([[np.log1p(5000.0), -0.3]]), torch.ones(2), None),
    )
    np.testing.assert_allclose(expected_proportions(log1p, "normal"), [[0.5, 0.0]], rtol=1e-5)
