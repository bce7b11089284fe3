"""A factor a gene moves a population onto a mean, and leaves its shape alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.model.base.draw import (
    Drawn,
    expected_proportions,
    gene_factors,
    group_populations,
    population_shares,
    rescaled,
    rescaled_parameters,
)
from scvi_perturb.module import CountParameters

N_CELLS, N_GENES = 80, 30


def population(spread=1.0, total=1.0, seed=0):
    """Return proportions and library sizes of cells that differ, and shares to be moved to."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, N_GENES) + random.normal(0, spread, (N_CELLS, N_GENES))
    shares = np.exp(logits)
    shares *= total / shares.sum(axis=1, keepdims=True)
    library = random.lognormal(7, 0.5, N_CELLS)
    wanted = population_shares(shares, library) * np.exp(random.normal(0, 0.7, N_GENES))
    return shares, library, wanted / wanted.sum()


def recentred(shares, factors):
    """Return shares times factors, each cell's with the sum that it had."""
    new = shares * factors
    return new * (shares.sum(axis=1) / new.sum(axis=1))[:, None]


def test_shares_are_those_of_summed_counts():
    shares, library, _ = population()
    counts = shares * library[:, None]
    np.testing.assert_allclose(population_shares(shares, library), counts.sum(0) / library.sum())


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_factors_reach_the_shares_wanted(spread):
    shares, library, wanted = population(spread)
    found = population_shares(recentred(shares, gene_factors(shares, library, wanted)), library)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert np.abs(population_shares(shares, library) / wanted - 1).max() > 0.5, "it was elsewhere"


def test_one_cell_is_moved_onto_the_shares_at_once():
    shares, library, wanted = population()
    factors = gene_factors(shares[:1], library[:1], wanted)
    np.testing.assert_allclose(recentred(shares[:1], factors)[0], wanted, rtol=1e-12)


def test_a_population_that_is_there_already_is_not_moved():
    shares, library, _ = population()
    factors = gene_factors(shares, library, population_shares(shares, library))
    np.testing.assert_allclose(factors, 1, rtol=1e-12)


def test_shares_wanted_are_scaled_to_those_that_are():
    # Zero-inflated counts: what is expected of a cell is less than its library.
    shares, library, wanted = population(total=0.7)
    factors = gene_factors(shares, library, wanted)
    np.testing.assert_allclose(factors, gene_factors(shares, library, 3 * wanted), rtol=1e-10)
    found = population_shares(recentred(shares, factors), library)
    np.testing.assert_allclose(found, 0.7 * wanted, rtol=1e-4)


def test_of_a_part_of_the_genes_nothing_is_scaled():
    shares, library, wanted = population(total=0.6)
    factors = gene_factors(shares, library, 0.4 * wanted, partial=True)
    found = population_shares(shares * factors, library)
    np.testing.assert_allclose(found, 0.4 * wanted, rtol=1e-12)


@pytest.mark.parametrize("partial", [False, True])
def test_factors_are_finite_and_bounded(partial):
    shares, library, wanted = population()
    shares[:, 0], wanted[0] = 1e-20, 0.3  # hardly there, and wanted
    shares[:, 1], wanted[1] = 0.0, 0.0  # neither
    wanted[2] = 0.0  # there, and not wanted
    factors = gene_factors(shares, library, wanted, partial=partial)
    assert ((factors >= 1e-3 * (1 - 1e-12)) & (factors <= 1e3 * (1 + 1e-12))).all()
    assert factors[0] > 100
    assert factors[2] < 0.01
    moved_to = population_shares(recentred(shares, factors), library)
    assert np.isfinite(moved_to).all()
    if not partial:  # the others share what is left as was wanted
        left = moved_to[3:] / moved_to[3:].sum()
        np.testing.assert_allclose(left, wanted[3:] / wanted[3:].sum(), rtol=1e-3)


def test_what_no_factor_does_is_done_as_nearly_as_can_be():
    # Each half of the cells has genes of its own: the sums of cells say what the shares are.
    shares = np.kron(np.eye(2), np.full((5, 3), 1 / 3))
    found = gene_factors(shares, np.ones(10), np.repeat([0.8 / 3, 0.2 / 3], 3))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(recentred(shares, found), shares, rtol=1e-12)


def test_cells_keep_their_shape():
    shares, library, wanted = population()
    new = recentred(shares, gene_factors(shares, library, wanted))
    for one, other in ((0, 1), (5, 17)):
        before, after = shares[one] / shares[other], new[one] / new[other]
        np.testing.assert_allclose(after / after[0], before / before[0], rtol=1e-10)


# Parameters of counts ------------------------------------------------------------------


def parameters(likelihood, shares, library, seed=0):
    """Return parameters of a likelihood, whose expected shares are near those given."""
    random = np.random.default_rng(seed)
    if likelihood == "normal":
        mean = np.log1p(1e4 * shares)
        mean[:, 0] = -0.2  # expects nothing
    else:
        mean = shares * library[:, None]
    zeros = random.normal(-1, 1, shares.shape) if likelihood == "zinb" else None
    dispersion = random.gamma(2.0, size=N_GENES)
    parts = (None if part is None else torch.from_numpy(part) for part in (mean, dispersion, zeros))
    return CountParameters(*parts)


def of_cells(parameters, library):
    return Drawn(np.arange(len(library)), torch.from_numpy(library), parameters)


LIKELIHOODS = pytest.mark.parametrize("likelihood", ["nb", "poisson", "zinb", "normal"])


@LIKELIHOODS
def test_expected_shares_of_moved_counts_are_recentred(likelihood):
    shares, library, wanted = population()
    given = parameters(likelihood, shares, library)
    own = expected_proportions(of_cells(given, library), likelihood)
    factors = gene_factors(own, library, wanted)
    new = rescaled_parameters(given, torch.from_numpy(factors), likelihood, partial=False)
    found = expected_proportions(of_cells(new, library), likelihood)
    np.testing.assert_allclose(found, recentred(own, factors), rtol=1e-10)
    assert new.dispersion is given.dispersion
    assert new.zero_logits is given.zero_logits


@LIKELIHOODS
def test_of_a_part_of_the_genes_expected_shares_are_multiplied(likelihood):
    shares, library, _ = population(total=0.6)
    given = parameters(likelihood, shares, library)
    factors = np.linspace(0.2, 3, N_GENES)
    new = rescaled_parameters(given, torch.from_numpy(factors), likelihood, partial=True)
    own, found = (expected_proportions(of_cells(p, library), likelihood) for p in (given, new))
    np.testing.assert_allclose(found, own * factors, rtol=1e-10)


def test_each_drawn_cell_has_factors_of_its_own():
    shares, library, _ = population()
    given = parameters("nb", shares, library)
    drawn = Drawn(np.arange(N_CELLS), torch.from_numpy(library).float(), given)
    factors = np.random.default_rng(1).gamma(2.0, size=shares.shape)
    new = rescaled(drawn, factors, "nb", partial=False)
    np.testing.assert_array_equal(new.cells, drawn.cells)
    found = new.parameters.mean.numpy() / library[:, None]
    wanted = shares * factors
    np.testing.assert_allclose(found, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
def test_populations_are_put_together_from_chunks(chunk):
    shares, library, _ = population()
    group = np.repeat([0, 1, 2, 3], [30, 1, 32, 17])
    given = parameters("nb", shares, library)

    def drawn():
        for cells in np.array_split(np.arange(N_CELLS), max(1, N_CELLS // chunk)):
            part = given._replace(mean=given.mean[cells])
            yield Drawn(cells, torch.from_numpy(library[cells]), part)

    found = list(group_populations(drawn(), group, "nb"))
    assert [own for own, _, _ in found] == [0, 1, 2, 3]
    for own, proportions, sizes in found:
        np.testing.assert_allclose(proportions, shares[group == own], rtol=1e-12)
        np.testing.assert_array_equal(sizes, library[group == own])
