"""Predicted cells for cell-eval2: its preset accepts them, and its numbers are ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark._cell_eval import to_cell_eval
from scvi_perturb.data import SimulatorConfig, simulate_screen
from scvi_perturb.metrics import (
    differential_expression,
    discrimination,
    log_normalize,
    pseudobulk,
    pseudobulk_variance,
)
from scvi_perturb.metrics._differential import de_direction_yield, de_jaccard, de_lfc_nmae
from scvi_perturb.metrics._means import nmse_terms

CONFIG = SimulatorConfig(
    n_perturbations=5, n_combinations=0, n_contexts=1, n_batches=1, effect_size=1.5
)


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(n_cells=700, n_genes=120, seed=0, config=CONFIG)


@pytest.fixture
def predicted(screen):
    """Cells of every condition: real ones, half of them exchanged for control cells."""
    rng = np.random.default_rng(0)
    label = screen.obs["perturbation"].astype(str).to_numpy()
    control = np.flatnonzero(label == "control")
    rows, names = [], []
    for name in sorted(set(label) - {"control"}):
        own = np.flatnonzero(label == name)
        n = len(own) // 2
        rows += [rng.choice(own, n), rng.choice(control, n + 7)]
        names += [name] * (2 * n + 7)
    obs = pd.DataFrame({"perturbation": names}, index=[f"cell{i}" for i in range(len(names))])
    return AnnData(screen.X[np.concatenate(rows)], obs=obs, var=screen.var[[]])


def test_form(screen, predicted):
    made = to_cell_eval(predicted, control=screen)
    n_control = (screen.obs["perturbation"] == "control").sum()
    assert made.obs.columns.tolist() == ["target"]
    assert (made.obs["target"] == "non-targeting").sum() == n_control
    assert made.n_obs == predicted.n_obs + n_control
    assert sparse.isspmatrix_csr(made.X)
    assert made.X.dtype == np.float32
    assert made.obs_names.is_unique
    assert made.var_names.tolist() == screen.var_names.tolist()
    names = predicted.obs["perturbation"].astype(str).tolist()
    assert made.obs["target"].tolist()[: predicted.n_obs] == names
    np.testing.assert_array_equal(made.X[: predicted.n_obs].toarray(), predicted.X.toarray())
    assert "target" not in predicted.obs, "input is left as it was"


def test_real_cells_bring_their_control(screen):
    made = to_cell_eval(screen)
    expected = screen.obs["perturbation"].astype(str).replace("control", "non-targeting")
    assert made.obs["target"].astype(str).tolist() == expected.tolist()


def test_genes_of_control_are_brought_into_order(screen, predicted):
    control = screen[screen.obs["perturbation"] == "control", screen.var_names[::-1]].copy()
    del control.obs["perturbation"]
    made = to_cell_eval(predicted, control=control)
    np.testing.assert_array_equal(
        made.X.toarray(), to_cell_eval(predicted, control=screen).X.toarray()
    )
    with pytest.raises(SchemaError, match="genes"):
        to_cell_eval(predicted, control=control[:, :50].copy())


def test_dense_integers_and_other_names(screen, predicted):
    predicted.X = predicted.X.toarray().astype(np.int64)
    predicted.obs = predicted.obs.rename(columns={"perturbation": "guide"})
    screen = screen.copy()
    screen.obs["guide"] = screen.obs["perturbation"].astype(str).replace("control", "NTC")
    made = to_cell_eval(predicted, control=screen, perturbation_key="guide", control_label="NTC")
    assert (made.obs["target"] == "non-targeting").sum() > 0
    assert sparse.isspmatrix_csr(made.X)


def test_control_is_given_once(screen, predicted):
    with pytest.raises(SchemaError, match=r"no `control`.*real control cells"):
        to_cell_eval(predicted)
    with pytest.raises(SchemaError, match="control cells once"):
        to_cell_eval(screen, control=screen)
    with pytest.raises(SchemaError, match="no cells of 'control' among"):
        to_cell_eval(predicted, control=predicted)
    with pytest.raises(SchemaError, match="nothing to score"):
        to_cell_eval(screen[screen.obs["perturbation"] == "control"])


def test_names_of_conditions(screen, predicted):
    with pytest.raises(SchemaError, match=r"no column 'guide'.*perturbation_key"):
        to_cell_eval(predicted, control=screen, perturbation_key="guide")
    predicted.obs.loc["cell0", "perturbation"] = " "
    with pytest.raises(SchemaError, match="1 cells without a name"):
        to_cell_eval(predicted, control=screen)
    predicted.obs.loc["cell0", "perturbation"] = "non-targeting"
    with pytest.raises(SchemaError, match="named 'non-targeting'"):
        to_cell_eval(predicted, control=screen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.log1p, r"predicted.X.*not whole \(such as .*log-normalised"),
        (lambda x: x * -1, "negative values"),
        (lambda x: x * np.nan, "NaN or infinite"),
        (lambda x: x * 10_000, "cells with more than 1,000,000 counts"),
    ],
)
def test_values_that_are_not_counts(screen, predicted, change, message):
    predicted.X.data = change(predicted.X.data)
    with pytest.raises(SchemaError, match=message):
        to_cell_eval(predicted, control=screen)


def test_a_condition_without_counts(screen, predicted):
    name = predicted.obs["perturbation"].iloc[0]
    silent = (predicted.obs["perturbation"] == name).to_numpy()
    predicted.X = sparse.diags((~silent).astype(np.float32)) @ predicted.X
    with pytest.raises(SchemaError, match=rf"'{name}'.*no counts in any"):
        to_cell_eval(predicted, control=screen)


@pytest.fixture
def judged(screen, predicted):
    """Both sides as converted, the genes that are targeted, and cell-eval2's numbers."""
    cell_eval = pytest.importorskip("cell_eval2", reason="cell-eval2 is not installed")
    made, real = to_cell_eval(predicted, control=screen), to_cell_eval(screen)
    names = sorted(set(real.obs["target"]) - {"non-targeting"})
    target = dict(zip(names, real.var_names[::7], strict=False))
    config = cell_eval.EvalConfig.from_preset("vcc2026")
    config = replace(
        config,
        target_gene_map=target,
        num_threads=1,
        device="cpu",
        de=replace(config.de, backend="scanpy"),
    )
    table = cell_eval.compute_metrics(made, real, config=config)
    found = {(row["perturbation"], row["metric"]): row["value"] for row in table.to_dicts()}
    return made, real, target, found


# Its dependencies warn of one another.
@pytest.mark.filterwarnings("ignore")
def test_the_judge_of_the_challenge_has_our_numbers(judged):
    made, real, target, found = judged
    labels = [side.obs["target"].astype(str).to_numpy() for side in (made, real)]
    control = real.X[labels[1] == "non-targeting"]
    changes, targeted = [], real.var_names.isin(list(target.values()))
    for name, gene in target.items():
        counts = [side.X[label == name] for side, label in zip((made, real), labels, strict=True)]
        own = real.var_names == gene
        # The means: their scale is 50,000 counts, and the own gene's noise stays in.
        means = [pseudobulk(x, target_sum=5e4) for x in (*counts, control)]
        noise = [pseudobulk_variance(x, target_sum=5e4) for x in (*counts, control)]
        changes.append([means[0] - means[2], means[1] - means[2]])
        error, effect = nmse_terms(*means, observed_variance=noise[1], control_variance=noise[2])
        error -= noise[0].sum() + ((means[0] - means[1])[own] ** 2).sum()
        effect -= ((means[2] - means[1])[own] ** 2).sum()
        n_genes = real.n_vars - 1
        assert error / n_genes == pytest.approx(found[name, "expr_mse_unbiased"], rel=1e-6)
        assert effect / n_genes == pytest.approx(found[name, "expr_distance_unbiased"], rel=1e-6)
        # Differential expression.
        tests = [differential_expression(log_normalize(x), log_normalize(control)) for x in counts]
        assert tests[1].significant.sum() >= 10
        for function, metric in (
            (de_direction_yield, "direction_fidelity_yield_raw"),
            (de_jaccard, "sig_jaccard"),
            (de_lfc_nmae, "lfc_nmae"),
        ):
            expected = found[name, f"de_wilcoxon_{metric}"]
            assert function(*tests, ~own) == pytest.approx(expected, rel=1e-6), metric
    ranks = discrimination(*np.stack(changes, axis=1), targeted=targeted)
    expected = [found[name, "pds_cosine"] for name in target]
    np.testing.assert_allclose(ranks, expected, atol=1e-12)
