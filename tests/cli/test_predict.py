"""`scvi-perturb predict`: answers of a saved model."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_perturb import PerturbDiffusion
from scvi_perturb.cli import main
from tests.cli.conftest import simulate

PAIR = "pert_01+pert_02"


def _predict(model: Path, *arguments: str) -> None:
    assert main(["predict", str(model), "--n-cells", "8", *arguments]) == 0


def _fails(capsys, model: Path, *arguments: str) -> str:
    """Return the one line that is said."""
    assert main(["predict", str(model), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_effects_and_cells_are_those_of_the_model(trained, capsys):
    given = ["--conditions", "pert_01", PAIR, "--seed", "4", "--interval", "0.8"]
    _predict(trained, *given, "--effects", "effects.h5ad", "--cells", "cells.h5ad")
    model = PerturbDiffusion.load(trained, adata=False)
    asked = {"n_samples": 8, "seed": 4}
    expected = model.predict(["pert_01", PAIR], interval=0.8, **asked)
    found = anndata.read_h5ad("effects.h5ad")
    assert found.obs["perturbation"].tolist() == ["pert_01", PAIR]
    for layer in ("lfc", "lower", "upper"):
        np.testing.assert_array_equal(found.layers[layer], expected.layers[layer])
    cells = anndata.read_h5ad("cells.h5ad")
    drawn = model.sample(["pert_01", PAIR], **asked)
    np.testing.assert_array_equal(cells.X.toarray(), drawn.X.toarray())
    printed = capsys.readouterr().out
    assert PAIR in printed
    assert "80% interval" in printed


def test_other_formats_hold_the_same(trained):
    given = ["--conditions", "pert_01", PAIR]
    _predict(trained, *given, "--effects", "effects.h5ad", "--cells", "cells.zarr")
    _predict(trained, *given, "--effects", "effects.csv", "--cells", "cells.zarr")
    found, table = anndata.read_h5ad("effects.h5ad"), pd.read_csv("effects.csv")
    assert anndata.read_zarr("cells.zarr").n_obs == 16
    wide = table.pivot(index="perturbation", columns="gene", values="lfc")
    expected = found.to_df("lfc").set_axis(found.obs["perturbation"].astype(str))
    np.testing.assert_allclose(wide.loc[expected.index, expected.columns], expected, rtol=1e-5)
    assert {"mean", "lower", "upper", "std", "support"} <= set(table)


def test_parquet_needs_pyarrow(trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    given = ["--conditions", "pert_01", "--n-cells", "8", "--effects", "effects.parquet"]
    assert "pip install pyarrow" in _fails(capsys, trained, *given)
    assert not list(Path().iterdir())


def test_a_table_names_contexts(trained, capsys):
    asked = pd.DataFrame({"perturbation": ["pert_01", PAIR], "cell_type": ["type_02", "type_01"]})
    asked.to_csv("requests.csv", index=False)
    _predict(trained, "--table", "requests.csv", "--cells", "cells.h5ad")
    cells = anndata.read_h5ad("cells.h5ad").obs
    assert cells["cell_type"].tolist() == ["type_02"] * 8 + ["type_01"] * 8
    assert f"{PAIR}, cell_type type_01" in capsys.readouterr().out


def test_a_reference_is_read_as_the_screen_of_training_was(trained, capsys):
    other = simulate(200, n_contexts=2)
    other.obs["cell_type"] = "new"
    other.obs_names = "new_" + other.obs_names
    other.write_h5ad("donor.h5ad")
    given = ["--conditions", "pert_01", "--reference", "donor.h5ad", "--cells", "cells.h5ad"]
    _predict(trained, *given)
    controls = (other.obs["perturbation"] == "control").sum()
    assert f"{controls} of 200 cells are controls and used" in capsys.readouterr().out
    used = set(anndata.read_h5ad("cells.h5ad").obs["reference_cell"])
    assert used <= set(other.obs_names[other.obs["perturbation"] == "control"])
    del other.obs["perturbation"]
    other.write_h5ad("controls.h5ad")
    given[3] = "controls.h5ad"
    _predict(trained, *given)
    assert "all cells are taken for controls" in capsys.readouterr().out


def test_without_a_file_to_write_the_answer_is_printed(trained, capsys):
    _predict(trained, "--conditions", "pert_01")
    printed = capsys.readouterr().out
    assert "pert_01" in printed
    assert "Nothing was written" in printed
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--conditions", "pert_1"], "Nearest known names: pert_01"),
        (["--conditions", "pert_01", "--interval", "90"], "--interval"),
        (["--conditions", "pert_01", "--effects", "e.txt"], "--effects e.txt: expected a name"),
        (["--conditions", "pert_01", "--cells", "c.csv"], "--cells c.csv: expected a name"),
        (["--conditions", "pert_01", "--cells", "no/c.h5ad"], "there is no folder no"),
        (["--conditions", "pert_01", "--cells", "a.h5ad", "--effects", "a.h5ad"], "same command"),
        (["--table", "absent.csv"], "--table absent.csv: there is no such file"),
        (["--reference", "absent.h5ad", "--conditions", "pert_01"], "There is no file absent"),
        (["--table", "t.csv", "--conditions", "pert_01"], "either --conditions"),
        ([], "either --conditions"),
    ],
)
def test_what_cannot_be_asked_is_one_line(trained, arguments, expected, capsys):
    assert expected in _fails(capsys, trained, *arguments)
    assert not list(Path().iterdir())


def test_an_output_may_not_be_an_input(trained, capsys):
    simulate(200).write_h5ad("donor.h5ad")
    given = ["--conditions", "pert_01", "--reference", "donor.h5ad", "--cells", "donor.h5ad"]
    assert "same command" in _fails(capsys, trained, *given)


def test_a_folder_without_a_model(tmp_path, capsys):
    asked = ["--conditions", "A"]
    assert "There is no folder" in _fails(capsys, tmp_path / "none", *asked)
    assert "not a saved model" in _fails(capsys, tmp_path, *asked)
    simulate(200).write_h5ad("screen.h5ad")
    assert "screen.h5ad is a file; expected the folder" in _fails(
        capsys, Path("screen.h5ad"), *asked
    )


def test_a_folder_of_something_else_is_not_replaced(trained, capsys):
    Path("cells.zarr").mkdir()
    Path("cells.zarr/thesis.txt").write_text("all of it", encoding="utf-8")
    given = ["--conditions", "pert_01", "--n-cells", "8", "--cells", "cells.zarr"]
    assert "holds thesis.txt" in _fails(capsys, trained, *given)
    assert Path("cells.zarr/thesis.txt").read_text(encoding="utf-8") == "all of it"
