"""The picture of who responded holds what was found."""

from __future__ import annotations

import numpy as np
import pytest

import scvi_perturb as svp


def test_rows_are_conditions_by_their_share(tmp_path):
    config = svp.data.SimulatorConfig(n_perturbations=3, n_combinations=0, n_contexts=1)
    adata = svp.data.simulate_screen(n_cells=500, n_genes=60, seed=0, config=config)
    with pytest.raises(svp.SchemaError, match="no 'responded'; call"):
        svp.pl.responders(adata)
    table = svp.tl.escapers(adata).sort_values("share")
    ax = svp.pl.responders(adata)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table["perturbation"])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), table["share"])
    shades = ax.collections[0].get_array().reshape(3, 20)
    np.testing.assert_allclose(shades.sum(axis=1), 1)
    own = adata.obs["perturbation"] == table["perturbation"].iloc[0]
    likely = (adata.obs.loc[own, "responded"] >= 0.95).mean()
    assert shades[0, -1] == pytest.approx(likely)
    ax.figure.savefig(tmp_path / "picture.png")
    ax.figure.clear()


def test_cells_are_those_of_their_row_however_the_label_is_written():
    config = svp.data.SimulatorConfig(n_perturbations=3, n_combinations=1, n_contexts=1)
    adata = svp.data.simulate_screen(n_cells=500, n_genes=60, seed=0, config=config)
    labels = adata.obs["perturbation"].astype(str).replace("pert_01", "pert_01+control")
    adata.obs["perturbation"] = ["+".join(reversed(label.split("+"))) for label in labels]
    adata.obs["dose"] = np.where(labels == "control", 0.0, 1 / 3)
    keys = svp.data.ScreenKeys(dose="dose", context=("cell_type",))
    svp.tl.escapers(adata, keys=keys, key_added="moved")
    ax = svp.pl.responders(adata, key="moved")
    shades = ax.collections[0].get_array().reshape(4, 20)
    np.testing.assert_allclose(shades.sum(axis=1), 1)
    # The cell type is the same for all.
    assert "pert_01, 0.333333" in [label.get_text() for label in ax.get_yticklabels()]
    ax.figure.clear()
