"""Interactions of pairs: geometry of vectors that are known, noise, and the simulator's truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import scvi_perturb as svp

N_GENES = 40
#: Two singles at right angles, and a direction that neither has.
FIRST, SECOND, NEW = np.eye(N_GENES)[:3]


def predicted(pair, *, first=FIRST, second=SECOND, std=0.01) -> AnnData:
    """What `predict` returns for A, B and A+B."""
    lfc = np.stack([first, second, pair])
    obs = pd.DataFrame({"perturbation": ["A", "B", "B+A"]}, index=["0", "1", "2"])
    return AnnData(lfc, obs=obs, layers={"lfc": lfc, "std": np.full(lfc.shape, std)})


@pytest.mark.parametrize(
    ("pair", "kind", "along"),
    [
        (FIRST + SECOND, "additive", 1.0),
        (1.1 * (FIRST + SECOND), "additive", 1.1),
        (1.5 * (FIRST + SECOND), "synergy", 1.5),
        (0.72 * (FIRST + SECOND), "buffering", 0.72),  # longer than one single: 0.72 sqrt(2) > 1
        (0.5 * (FIRST + SECOND), "suppression", 0.5),
        (FIRST + SECOND + 2 * NEW, "neomorphic", 1.0),
    ],
)
def test_kinds_of_known_pairs(pair, kind, along):
    (row,) = svp.tl.interactions(predicted(pair)).to_dict("records")
    assert row["kind"] == kind
    assert row["along"] == pytest.approx(along)
    assert row["along_lower"] < along < row["along_upper"]
    assert row["size_interaction"] == pytest.approx(np.linalg.norm(pair - FIRST - SECOND))


def test_geometry_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    first, second, pair = rng.normal(size=(3, N_GENES))
    (row,) = svp.tl.interactions(predicted(pair, first=first, second=second)).to_dict("records")
    singles = np.column_stack([first, second])
    coefficients = np.linalg.lstsq(singles, pair)[0]
    total, fitted = first + second, singles @ coefficients
    np.testing.assert_allclose([row["coefficient_first"], row["coefficient_second"]], coefficients)
    cosines = [x @ pair / np.linalg.norm(x) / np.linalg.norm(pair) for x in (fitted, total)]
    np.testing.assert_allclose([row["fit"], row["cosine"]], cosines)
    rest = pair - (pair @ total) / (total @ total) * total
    assert row["orthogonal"] == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(total))


def test_parallel_singles_have_no_coefficients():
    (row,) = svp.tl.interactions(predicted(2 * FIRST, second=FIRST)).to_dict("records")
    assert np.isnan(row["coefficient_first"])
    assert (row["kind"], row["along"]) == ("additive", pytest.approx(1.0))


def test_singles_within_noise_are_unclear():
    (row,) = svp.tl.interactions(predicted(FIRST, std=1.0)).to_dict("records")
    assert row["kind"] == "unclear"


def test_errors_of_genes_add_in_quadrature():
    table = svp.tl.interactions(predicted(NEW, std=0.1), genes=True, n_boot=4000, level=0.9)
    assert list(table["gene"]) == [str(i) for i in range(N_GENES)]
    np.testing.assert_allclose(table["interaction"], NEW - FIRST - SECOND)
    # Standard error of a standard deviation from 4,000 draws: 1 / sqrt(8,000), 5 of them.
    np.testing.assert_allclose(table["std"], 0.1 * np.sqrt(3), rtol=5 / np.sqrt(8000))
    width = (table["upper"] - table["lower"]) / table["std"]
    np.testing.assert_allclose(width, 2 * stats.norm.ppf(0.95))


def drawn(rates, n_cells, rng, *, spread=0.3) -> tuple[np.ndarray, pd.DataFrame]:
    """Cells of A, B, A+B and control whose depths vary, and their labels."""
    labels = np.repeat(["A", "B", "A+B", "control"], n_cells)
    depth = np.exp(spread * rng.normal(size=len(labels)))
    obs = pd.DataFrame({"perturbation": labels}).set_axis(map(str, range(len(labels))))
    return rng.poisson(depth[:, None] * np.repeat(rates, n_cells, axis=0)), obs


def test_without_interaction_p_values_and_intervals_keep_their_level():
    rng = np.random.default_rng(1)
    control = np.exp(rng.normal(1, 0.5, 30))
    first = control * np.exp(rng.normal(0, 0.5, 30))
    p_values, covered = [], []
    for seed in range(40):  # B does nothing, so A+B is A
        counts, labels = drawn(np.stack([first, control, first, control]), 60, rng)
        adata = AnnData(counts.astype(np.float32), obs=labels)
        (row,) = svp.tl.interactions(adata, n_boot=100, seed=seed).to_dict("records")
        p_values.append(row["p_value"])
        covered.append(row["along_lower"] < 1 < row["along_upper"])
    # 99.9 % of the binomial on either side of the nominal rate.
    assert np.sum(np.array(p_values) < 0.1) <= stats.binom.ppf(0.999, 40, 0.1)
    assert stats.binom.ppf(0.001, 40, 0.9) <= np.sum(covered)


@pytest.fixture(scope="module")
def screen() -> AnnData:
    config = svp.data.SimulatorConfig(
        n_perturbations=4,
        n_combinations=3,
        interaction_strength=1.0,
        n_contexts=2,
        n_batches=3,
        responder_fraction=1.0,
    )
    return svp.data.simulate_screen(n_cells=2400, n_genes=100, seed=3, config=config)


@pytest.fixture(scope="module")
def of_contexts(screen) -> pd.DataFrame:
    return svp.tl.interactions(screen, keys=svp.data.ScreenKeys(context="cell_type"))


def test_measured_interactions_are_the_simulators(screen, of_contexts):
    keys = svp.data.ScreenKeys(context="cell_type")
    genes = svp.tl.interactions(screen, keys=keys, genes=True)
    truth = []
    for pair, context in zip(of_contexts["perturbation"], of_contexts["cell_type"], strict=True):
        parts = [pair, *pair.split("+")]
        both, *singles = (svp.data.true_effect(screen, one, context=context) for one in parts)
        truth.append(both - sum(singles))
    expected = np.concatenate(truth)
    assert np.corrcoef(genes["interaction"], expected)[0, 1] > 0.9
    z = (genes["interaction"] - expected) / genes["std"]
    assert 0.85 < np.sqrt((z**2).mean()) < 1.15  # one if the errors are those stated
    assert (of_contexts["p_value"] < 1e-4).all()
    sizes = np.linalg.norm(truth, axis=1)
    np.testing.assert_allclose(of_contexts["size_interaction"], sizes, rtol=0.25)


def test_contexts_are_rows_of_their_own(screen, of_contexts):
    assert len(of_contexts) == 6
    one = screen[screen.obs["cell_type"] == "type_01"].copy()
    alone = svp.tl.interactions(one, n_boot=20)
    own = of_contexts[of_contexts["cell_type"] == "type_01"]
    np.testing.assert_allclose(own["size_pair"], alone["size_pair"], rtol=0.05)
    np.testing.assert_array_equal(own["n_cells"], alone["n_cells"])


def test_blocks_widen_intervals_and_are_within(screen):
    cells = svp.tl.interactions(screen, n_boot=50)
    blocks = svp.tl.interactions(screen, block_key="batch", n_boot=50)
    width = [(t["along_upper"] - t["along_lower"]).mean() for t in (cells, blocks)]
    assert width[1] > width[0]  # Student's quantile of two degrees of freedom
    np.testing.assert_allclose(blocks["along"], cells["along"], atol=0.15)


def test_the_same_seed_gives_the_same_table_whatever_else_is_asked(screen):
    one, again = (svp.tl.interactions(screen, n_boot=20, seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    pair = one["perturbation"].iloc[-1]
    asked = svp.tl.interactions(screen, pairs=[pair], n_boot=20, seed=5)
    last = one.iloc[[-1]].reset_index(drop=True).drop(columns="q_value")
    pd.testing.assert_frame_equal(asked.drop(columns="q_value"), last)
    other = svp.tl.interactions(screen, n_boot=20, seed=6)
    assert (other["along_lower"] != one["along_lower"]).all()


def test_what_is_not_there_is_named(screen):
    with pytest.raises(svp.SchemaError, match=r"Did not find A\+B"):
        svp.tl.interactions(screen, pairs=["A+B"])
    with pytest.raises(svp.SchemaError, match="no column 'donor'"):
        svp.tl.interactions(screen, block_key="donor")
    one_batch = screen[screen.obs["batch"] == "batch_01"].copy()
    with pytest.raises(svp.SchemaError, match="Found 1 blocks"):
        svp.tl.interactions(one_batch, block_key="batch")
    pairs = [label for label in screen.obs["perturbation"].unique() if "+" in label]
    without = screen[screen.obs["perturbation"] != pairs[0].split("+")[0]].copy()
    with pytest.warns(UserWarning, match="Left out . pairs without both singles"):
        svp.tl.interactions(without, n_boot=10)


def test_predictions_need_finite_errors_and_one_row_a_condition():
    data = predicted(FIRST)
    data.layers["std"][0, 0] = np.nan
    with pytest.raises(svp.SchemaError, match="not finite"):
        svp.tl.interactions(data)
    del data.layers["std"]
    with pytest.raises(svp.SchemaError, match="'std' is missing"):
        svp.tl.interactions(data)
    twice = predicted(FIRST)
    twice.obs["perturbation"] = ["A", "A+B", "B+A"]
    with pytest.raises(svp.SchemaError, match="several rows"):
        svp.tl.interactions(twice)
    with pytest.raises(svp.SchemaError, match="predictions have no blocks"):
        svp.tl.interactions(predicted(FIRST), block_key="perturbation")
