"""Effects by donor, beside statsmodels' meta-analysis and donors that are known to differ."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from statsmodels.stats.meta_analysis import combine_effects

import scvi_perturb as svp
from scvi_perturb.tl._donors import pooled

N_DONORS, N_GENES, N_DIFFERENT = 5, 100, 20
SD = 0.5


@pytest.fixture(scope="module")
def screen():
    """Counts of independent genes, of which the first twenty change otherwise in each donor."""
    rng = np.random.default_rng(1)
    mean = np.exp(rng.normal(1.5, 0.7, N_GENES))
    parts, rows = [], []
    for donor in range(N_DONORS):
        base = mean * np.exp(rng.normal(0, 0.4, N_GENES))
        change = np.where(np.arange(N_GENES) < N_DIFFERENT, rng.normal(0.2, SD, N_GENES), 0.2)
        for label, n, rate in (("control", 200, base), ("A", 40, base * np.exp(change))):
            parts.append(rng.poisson(rate * rng.gamma(5, 1 / 5, (n, N_GENES))))
            rows += [(label, f"donor_{donor}")] * n
    obs = pd.DataFrame(rows, columns=["perturbation", "donor"], dtype="category")
    obs.index = obs.index.astype(str)
    genes = pd.DataFrame(index=[f"g{i:02d}" for i in range(N_GENES)])
    return anndata.AnnData(sparse.csr_matrix(np.vstack(parts).astype(np.float32)), obs, genes)


@pytest.fixture(scope="module")
def table(screen):
    return svp.tl.compare_donors(screen, donor_key="donor")


def test_pooling_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    effects, variances = rng.normal(0.3, 1.0, (6, 8)), rng.uniform(0.01, 0.2, (6, 8))
    found = pooled(effects, variances)
    for gene in range(8):
        other = combine_effects(effects[:, gene], variances[:, gene], method_re="dl")
        expected = (other.mean_effect_re, other.sd_eff_w_re, other.q, other.i2, other.tau2)
        np.testing.assert_allclose([values[gene] for values in found], expected)


def test_donors_that_agree_have_no_variance_between_them():
    variances = np.array([[0.1], [0.2], [0.4]])
    found = pooled(np.full((3, 1), 0.5), variances)
    assert [found.q[0], found.i2[0], found.tau2[0]] == pytest.approx([0, 0, 0])
    assert found.lfc[0] == pytest.approx(0.5)
    assert found.se[0] == pytest.approx(np.sqrt(1 / (1 / variances).sum()))


def test_rows_are_donors(screen, table):
    assert len(table) == N_DONORS * N_GENES
    assert set(table["n_donors"]) == {N_DONORS}
    assert (set(table["n_cells"]), set(table["n_control_cells"])) == ({40}, {200})
    one = table[(table["gene"] == "g03")].set_index("donor").loc["donor_2"]
    own = screen[screen.obs["donor"] == "donor_2"]
    sums = own.to_df().groupby(own.obs["perturbation"], observed=True).sum()
    profile = np.log1p(1e4 * sums["g03"] / sums.sum(axis=1))
    # The correction of the bias is half of a variance.
    assert one["lfc"] == pytest.approx(profile["A"] - profile["control"], abs=one["se"] ** 2)


def test_standard_error_of_a_donor_is_that_of_the_bootstrap(screen, table):
    rng = np.random.default_rng(0)
    own = screen[screen.obs["donor"] == "donor_0"]
    counts = own.X.toarray()
    sides = [np.flatnonzero(own.obs["perturbation"] == label) for label in ("A", "control")]

    def profile(rows):
        sums = counts[rng.choice(rows, len(rows))].sum(axis=0)
        return np.log1p(1e4 * sums / sums.sum())

    drawn = np.std([profile(sides[0]) - profile(sides[1]) for _ in range(300)], axis=0)
    se = table[table["donor"] == "donor_0"].set_index("gene")["se"][screen.var_names]
    # One is of this donor's cells, the other pooled over donors: forty cells know a standard
    # deviation to about 15 %, the mean over a hundred genes to 2 %.
    assert np.log(se / drawn).mean() == pytest.approx(0.0, abs=0.08)


def test_donors_that_differ_are_told_from_those_that_do_not(screen, table):
    genes = table.drop_duplicates("gene").set_index("gene").loc[screen.var_names]
    differ, alike = genes.iloc[:N_DIFFERENT], genes.iloc[N_DIFFERENT:]
    assert (differ["p_adjusted"] < 0.05).mean() > 0.6
    # Eighty p-values below 0.05 by chance: four, with a standard deviation of two.
    assert (alike["p_value"] < 0.05).sum() <= 10
    # The variance of five normal numbers is known to 70 %, its mean over twenty genes to 16 %;
    # profiles move a little less than the logarithms of shares do.
    assert differ["tau2"].mean() == pytest.approx(SD**2, rel=0.6)
    assert alike["tau2"].mean() < 0.1 * SD**2
    assert differ["i2"].mean() > 0.5 > alike["i2"].mean()


def test_it_is_written(screen, table):
    assert screen.uns["compare_donors"] is table
    assert screen.uns["scvi_perturb"]["results"]["compare_donors"]["donor_key"] == "donor"


def test_one_donor_is_refused(screen):
    own = screen[screen.obs["donor"] == "donor_0"].copy()
    with pytest.raises(svp.SchemaError, match="two donors of obs\\['donor'\\]"):
        svp.tl.compare_donors(own, donor_key="donor")
    with pytest.raises(ValueError, match="min_cells=1 is out of range"):
        svp.tl.compare_donors(screen, donor_key="donor", min_cells=1)
