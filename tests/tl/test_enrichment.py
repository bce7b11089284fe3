"""Gene sets that effects move: against decoupler, a t-test, and known shifts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import scvi_perturb as svp

GENES = [f"g{i}" for i in range(60)]
SETS = {"up": GENES[:10], "none": GENES[10:25], "tiny": GENES[:2]}


def predicted(*, std=0.1, seed=0) -> AnnData:
    effects = 0.3 * np.random.default_rng(seed).normal(size=(3, 60))
    effects[0, :10] += 1.0
    obs = pd.DataFrame({"perturbation": ["A", "B", "C"]}, index=["0", "1", "2"])
    var = pd.DataFrame(index=GENES)
    layers = {"lfc": effects, "std": np.full(effects.shape, std)}
    return AnnData(effects, obs=obs, var=var, layers=layers)


def test_the_score_is_the_t_test_of_genes_in_and_out():
    data = predicted()
    table = svp.tl.enrichment(data, SETS).set_index(["perturbation", "gene_set"])
    assert set(table.index.get_level_values("gene_set")) == {"up", "none"}
    for i, perturbation in enumerate(data.obs["perturbation"]):
        effect = data.layers["lfc"][i]
        for name, members in SETS.items():
            if name == "tiny":
                continue
            inside = np.isin(GENES, members)
            expected = stats.ttest_ind(effect[inside], effect[~inside])
            row = table.loc[(perturbation, name)]
            np.testing.assert_allclose(row[["score", "p_value"]].to_list(), [*expected])
            difference = effect[inside].mean() - effect[~inside].mean()
            np.testing.assert_allclose(row["shift"], difference)
    assert table.loc[("A", "up"), "q_value"] < 1e-6


def test_scores_are_those_of_decoupler():
    dc = pytest.importorskip("decoupler", reason="decoupler is not installed")
    data = predicted()
    weighted = {"up": {gene: 1.0 + i for i, gene in enumerate(SETS["up"])}, "none": SETS["none"]}
    net = [
        (name, gene, members[gene] if isinstance(members, dict) else 1.0)
        for name, members in weighted.items()
        for gene in members
    ]
    net = pd.DataFrame(net, columns=["source", "target", "weight"])
    scores, _ = dc.mt.ulm(data.to_df("lfc"), net, tmin=5)
    ours = svp.tl.enrichment(data, weighted).pivot_table(
        index="perturbation", columns="gene_set", values="score"
    )
    np.testing.assert_allclose(ours[scores.columns], scores, rtol=1e-4)


def test_errors_of_effects_are_carried_through():
    table = svp.tl.enrichment(predicted(std=0.2), SETS, n_boot=4000, level=0.9)
    n = table["n_genes"]
    expected = 0.2 * np.sqrt(1 / n + 1 / (60 - n))
    np.testing.assert_allclose(table["std"], expected, rtol=5 / np.sqrt(8000))
    width = (table["upper"] - table["lower"]) / table["std"]
    np.testing.assert_allclose(width, 2 * stats.norm.ppf(0.95))


def test_intervals_of_cells_hold_the_true_shift():
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(2.0, 0.3, 60))
    change = np.where(np.isin(GENES, SETS["up"]), 0.3, 0.0)
    change -= np.log((base * np.exp(change)).sum() / base.sum())  # shares of a constant total
    scale = 1e4 / base.sum()
    true = np.log1p(scale * base * np.exp(change)) - np.log1p(scale * base)
    expected = true[:10].mean() - true[10:].mean()
    held = 0
    for seed in range(30):
        rates = np.concatenate([np.tile(base * np.exp(c), (40, 1)) for c in (0 * change, change)])
        obs = pd.DataFrame({"perturbation": np.repeat(["control", "A"], 40)})
        obs.index = obs.index.astype(str)
        cells = AnnData(
            rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES)
        )
        (row,) = svp.tl.enrichment(cells, {"up": SETS["up"]}, seed=seed).to_dict("records")
        held += row["lower"] <= expected <= row["upper"]
    assert stats.binom.ppf(0.001, 30, 0.85) <= held  # 50 draws make intervals a little narrower


def test_sets_are_read_from_a_gmt_file(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("".join(f"{name}\t\t" + "\t".join(own) + "\n" for name, own in SETS.items()))
    pd.testing.assert_frame_equal(
        svp.tl.enrichment(predicted(), path), svp.tl.enrichment(predicted(), SETS)
    )


def test_sets_of_other_names_are_refused():
    with pytest.raises(svp.SchemaError, match=r"such as \['g0', 'g1', 'g2'\].*'ENSG1'"):
        svp.tl.enrichment(predicted(), {"other": ["ENSG1"] * 10})
