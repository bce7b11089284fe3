"""The Kang benchmark on a small file of the same form: what is held out, scored, kept, resumed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from benchmarks import _kang_frame, kang
from scvi_perturb.metrics import log_normalize

TYPES = ["B cells", "NK cells", "T cells"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a screen with an effect shared by three types, beside cells to be dropped."""
    rng = np.random.default_rng(0)
    effect = np.exp(rng.normal(0, 1, 80))
    rows, obs = [], []
    for cell_type in [*TYPES, "Megakaryocytes", "unknown"]:
        base = rng.lognormal(0, 1.2, 80)
        for label in ("control", "IFN-beta"):
            rates = base * (effect if label == "IFN-beta" else 1)
            rows.append(rng.poisson(rng.gamma(4, rates / 4, (40, 80))))
            obs += [(label, cell_type)] * 40
    counts = sparse.csr_matrix(np.concatenate(rows).astype(np.float32))
    columns = pd.DataFrame(obs, columns=["perturbation", "cell_type"], dtype="category")
    columns.index = [f"cell{i}" for i in range(len(columns))]
    where = tmp_path_factory.mktemp("data")
    adata = AnnData(counts, obs=columns, var=pd.DataFrame(index=[f"g{i}" for i in range(80)]))
    adata.write_h5ad(where / _kang_frame.FILE)
    return where


@pytest.fixture(autouse=True)
def _data(folder, monkeypatch):
    monkeypatch.setenv(_kang_frame.DATA_VARIABLE, str(folder))


@pytest.fixture
def case():
    return _kang_frame.hold_out(_kang_frame.load_kang(), "NK cells", seed=0)


def test_types_without_a_name_or_without_cells_are_dropped():
    assert _kang_frame.cell_types(_kang_frame.load_kang()) == TYPES


def test_only_the_stimulated_cells_of_the_type_are_held_out(case):
    held = case.screen.obs.iloc[case.split.test]
    assert len(held) == 40
    assert set(held["cell_type"]) == {"NK cells"}
    assert set(held["perturbation"]) == {"IFN-beta"}
    assert set(case.reference.obs["perturbation"]) == {"control"}
    assert set(case.reference.obs["cell_type"]) == {"NK cells"}


def test_nothing_but_the_score_depends_on_the_held_out_cells(case):
    spoilt = case.screen.copy()
    counts = spoilt.X.toarray()
    counts[case.split.test] = np.random.default_rng(0).poisson(3, (40, 80))
    spoilt.X = sparse.csr_matrix(counts)
    other = _kang_frame.hold_out(spoilt, "NK cells", seed=0)
    np.testing.assert_array_equal(other.space.pca.components_, case.space.pca.components_)
    np.testing.assert_array_equal(other.split.train, case.split.train)
    for method in ("no change", "shifted control"):
        first, second = (kang.predicted_cells(method, c) for c in (case, other))
        np.testing.assert_array_equal(first, second)


def test_trivial_rows(case):
    rows = {
        method: _kang_frame.score_cells(case, kang.predicted_cells(method, case), 0)
        for method in ("no change", "shifted control")
    }
    rows["replicate"] = _kang_frame.score_replicate(case, 0)
    assert rows["no change"]["nmse_vs_no_change"] == pytest.approx(1, abs=1e-9)
    assert rows["no change"]["pearson_delta"] == 0  # it has no direction
    for name in ("nmse", "energy"):
        none, shifted, again = (row[name] for row in rows.values())
        assert none > shifted > again
    assert abs(rows["replicate"]["energy"]) < 0.1 * rows["no change"]["energy"]


def test_a_run_writes_prints_and_goes_on(tmp_path, capsys, monkeypatch):
    arguments = ["--model", "none", "--types", "B cells", "--out", str(tmp_path)]
    first = kang.main([*arguments, "--seeds", "1"])
    assert first["method"].tolist() == ["no change", "shifted control", "replicate"]
    assert "| shifted control |" in capsys.readouterr().out
    path = tmp_path / "kang_none.csv"
    assert len(pd.read_csv(path)) == 3

    scored = []
    hold_out = kang.hold_out
    monkeypatch.setattr(kang, "hold_out", lambda *a: scored.append(a[1:]) or hold_out(*a))
    second = kang.main([*arguments, "--seeds", "2"])
    assert scored == [("B cells", 1)]
    pd.testing.assert_frame_equal(second[second["seed"] == 0].reset_index(drop=True), first)
    assert (tmp_path / "kang_none.md").read_text(encoding="utf-8").startswith("# Kang")

    kang.main([*arguments, "--seeds", "1", "--fresh"])
    assert len(pd.read_csv(path)) == 3


def test_a_row_that_was_lost_is_computed_again(tmp_path):
    arguments = ["--model", "none", "--types", "B cells", "--out", str(tmp_path), "--seeds", "1"]
    first = kang.main(arguments)
    path = tmp_path / "kang_none.csv"
    pd.read_csv(path).iloc[:2].to_csv(path, index=False)
    second = kang.main(arguments)
    columns = [name for name in first if name != "seconds"]
    pd.testing.assert_frame_equal(first[columns], second[columns])


class _Oracle:
    """A model that samples the held-out cells themselves."""

    def __init__(self, case):
        self.cells = case.screen[case.split.test].copy()
        self.cells.uns["scvi_perturb"] = {"units": "counts"}

    def sample(self, *_, **__):
        return self.cells


def test_a_models_counts_are_scored_as_cells(case, monkeypatch, tmp_path):
    """A model that samples the held-out cells themselves is perfect."""
    monkeypatch.setattr(kang, "train_model", lambda _, c, __: _Oracle(c))
    cells = kang.sampled_cells(_Oracle(case), case, {"n_samples": None}, 0)
    np.testing.assert_allclose(
        cells.toarray(), log_normalize(case.screen.X[case.split.test]).toarray()
    )
    arguments = ["--types", "NK cells", "--out", str(tmp_path), "--seeds", "1"]
    frame = kang.main(arguments).set_index("method")
    assert frame.loc["diffusion", "nmse"] < 0
    assert frame.loc["diffusion", "pearson_delta"] == pytest.approx(1)
    assert frame.loc["diffusion", "variance_ratio"] == pytest.approx(1)


def test_missing_data_are_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=_kang_frame.DATA_VARIABLE):
        _kang_frame.load_kang(tmp_path)


def test_trivial_rows_are_those_measured_before(data_dir):
    """On the real screen, one type: figures that others measured on the same frame."""
    case = _kang_frame.hold_out(_kang_frame.load_kang(data_dir), "B cells")
    none = _kang_frame.score_cells(case, kang.predicted_cells("no change", case), 0)
    shifted = _kang_frame.score_cells(case, kang.predicted_cells("shifted control", case), 0)
    assert case.screen.shape == (3855, 4805)
    assert none["energy"] == pytest.approx(8.15, abs=0.1)
    assert shifted["pearson_delta"] == pytest.approx(0.830, abs=2e-3)
    assert shifted["nmse"] == pytest.approx(0.325, abs=2e-3)
    assert shifted["energy"] == pytest.approx(1.6, abs=0.1)
