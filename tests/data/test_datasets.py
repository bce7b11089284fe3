"""Named screens: verified downloads, files on disk, canonical columns, honest errors."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.data import datasets as _datasets
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.datasets import DATASETS, list_datasets, load_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

X = np.array([[1, 0, 3], [0, 2, 0], [4, 1, 1], [0, 0, 5]], dtype=np.float32)
OBS = {
    "kang2018": {
        "label": ["ctrl", "stim", "ctrl", "stim"],
        "cell_type": ["B", "B", "NK", "NK"],
        "replicate": ["patient_101", "patient_101", "patient_102", "patient_102"],
    },
    "papalexi2021": {
        "perturbation": ["control", "STAT2g2", "IFNGR1g1", "STAT2g1"],
        "hto": ["rep1", "rep1", "rep2", "rep2"],
    },
    "norman2019": {
        "perturbation": ["control", "SET_KLF1", "KLF1", "SET"],
        "gemgroup": [1, 1, 2, 2],
    },
    "sciplex3": {
        "perturbation": ["control", "(+)-JQ1 ", "Alvespimycin", None],
        "dose_value": [0.0, 10.0, 10000.0, np.nan],
        "time": [24.0, 24.0, 72.0, np.nan],
        "cell_line": ["A549", "A549", "K562", None],
        "replicate": ["rep1", "rep1", "rep2", None],
    },
    "mcfarland2020": {
        "perturbation": ["control", "Trametinib", "sgGPX4-1", "Idasanutlin"],
        "dose_value": [None, "0.1", None, "2.5"],
        "time": ["6", "24", "24", "6"],
        "cell_line": ["L1", "L1", "L2", "L2"],
    },
}


def _file(name: str, folder: Path, x: np.ndarray = X) -> Path:
    obs = pd.DataFrame(OBS[name], index=[f"c{i}" for i in range(4)])
    path = folder / DATASETS[name].file_name
    ad.AnnData(x, obs=obs).write_h5ad(path)
    return path


def _load(name: str, folder: Path) -> pd.DataFrame:
    return load_dataset(name, path=_file(name, folder)).obs


def test_every_entry_is_complete() -> None:
    table = list_datasets()
    assert {"kang2018", "norman2019", "papalexi2021", "replogle2022_k562_essential"} <= set(
        table.index
    )
    assert {"sciplex3", "mcfarland2020"} <= set(table.index)
    for entry in DATASETS.values():
        assert all(url.startswith("https://") for url in entry.urls)
        assert "doi:" in entry.paper
        assert "perturbation" in entry.columns
        assert entry.context or "cell_type" in entry.columns
        assert entry.verified_by
        if entry.checksum is not None:
            algorithm, digest = entry.checksum.split(":")
            assert len(digest) == hashlib.new(algorithm).digest_size * 2
            assert int(digest, 16) > 0


def test_labels_are_renamed(tmp_path: Path) -> None:
    obs = _load("kang2018", tmp_path)
    assert obs["perturbation"].tolist() == ["control", "IFN-beta"] * 2
    assert obs["donor"].tolist()[0] == "patient_101"
    assert set(obs["perturbation_type"]) == {"cytokine"}
    assert "dose" not in obs
    assert obs["label"].tolist() == ["ctrl", "stim", "ctrl", "stim"]


def test_guides_are_pooled_and_kept(tmp_path: Path) -> None:
    obs = _load("papalexi2021", tmp_path)
    assert obs["perturbation"].tolist() == ["control", "STAT2", "IFNGR1", "STAT2"]
    assert obs["guide"].tolist() == ["control", "STAT2g2", "IFNGR1g1", "STAT2g1"]
    assert set(obs["cell_type"]) == {"THP1"}
    np.testing.assert_array_equal(obs["library_size"], X.sum(axis=1))


def test_combinations_are_canonical(tmp_path: Path) -> None:
    obs = _load("norman2019", tmp_path)
    assert obs["perturbation"].tolist() == ["control", "KLF1+SET", "KLF1", "SET"]
    assert obs["batch"].tolist() == ["1", "1", "2", "2"]


def test_doses_and_times_are_read_and_incomplete_cells_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        adata = load_dataset("sciplex3", path=_file("sciplex3", tmp_path))
    assert "sciplex3: dropped 1 of 4 cells" in caplog.text
    # the plus of one drug's name does not join two
    assert adata.obs["perturbation"].tolist() == ["control", "(plus)-JQ1", "Alvespimycin"]
    assert adata.obs["dose"].tolist() == ["0", "10", "10000"]
    assert adata.obs["time"].tolist() == [24.0, 24.0, 72.0]
    assert adata.uns["scvi_perturb"]["dataset"]["dose_unit"] == "nM"
    keys = ScreenKeys("perturbation", dose="dose", time="time")
    codes, table = encode_obs(adata.obs, keys)
    assert [str(table.conditions[code]) for code in codes][1:] == [
        "(plus)-JQ1 (dose 10), time 24",
        "Alvespimycin (dose 10000), time 72",
    ]


def test_a_control_needs_no_dose_but_a_drug_does(tmp_path: Path) -> None:
    obs = _load("mcfarland2020", tmp_path)
    assert obs["perturbation"].tolist() == ["control", "Trametinib", "Idasanutlin"]
    assert obs["dose"].tolist() == ["0", "0.1", "2.5"]


@pytest.mark.parametrize("name", sorted(OBS))
def test_result_can_be_written(name: str, tmp_path: Path) -> None:
    adata = load_dataset(name, path=_file(name, tmp_path))
    adata.write_h5ad(tmp_path / "out.h5ad")
    back = ad.read_h5ad(tmp_path / "out.h5ad")
    assert back.obs["perturbation"].tolist() == adata.obs["perturbation"].tolist()
    assert back.uns["scvi_perturb"]["dataset"]["name"] == name


def test_a_folder_will_do(tmp_path: Path) -> None:
    _file("kang2018", tmp_path)
    assert load_dataset("kang2018", path=str(tmp_path)).n_obs == 4


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*gone.h5ad; expected 'kang2018'"):
        load_dataset("kang2018", path=tmp_path / "gone.h5ad")
    with pytest.raises(SchemaError, match=r"X of kang_2018.h5ad .* looks log-normalised"):
        load_dataset("kang2018", path=_file("kang2018", tmp_path, np.log1p(X)))
    with pytest.raises(SchemaError, match=r"no column for dose; .*dose_value"):
        load_dataset("sciplex3", path=_file("papalexi2021", tmp_path))
    with pytest.raises(ValueError, match=r"name='norman' is not known; .*'norman2019'"):
        load_dataset("norman")


def _fetch_from(folder: Path, asked: list[str]) -> Callable[..., str]:
    """Stand in for the network: addresses with "broken" fail, others copy from a folder."""

    def retrieve(url: str, known_hash: str | None, *, fname: str, path: Path) -> str:
        asked.append(url)
        if "broken" in url:
            msg = f"no route to {url}"
            raise OSError(msg)
        target = Path(path) / fname
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / fname, target)
        if known_hash is not None and not pooch.hashes.hash_matches(target, known_hash):
            msg = "hash of downloaded file does not match"
            raise ValueError(msg)
        return str(target)

    return retrieve


def _register(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    changed = {**DATASETS, "kang2018": replace(DATASETS["kang2018"], **changes)}
    monkeypatch.setattr(_datasets, "DATASETS", changed)


def test_mirrors_are_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    source = _file("kang2018", tmp_path / "source")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    urls = ("https://broken/kang", "https://mirror/kang", "https://never/kang")
    _register(monkeypatch, urls=urls, checksum=f"sha256:{digest}")
    asked: list[str] = []
    monkeypatch.setattr(pooch, "retrieve", _fetch_from(source.parent, asked))
    adata = load_dataset("kang2018", cache=tmp_path / "cache")
    assert adata.n_obs == 4
    assert asked == list(urls[:2])


def test_a_file_that_is_cached_and_right_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _file("kang2018", tmp_path)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    _register(monkeypatch, urls=("https://host.invalid/kang",), checksum=f"sha256:{digest}")
    assert load_dataset("kang2018", cache=tmp_path).n_obs == 4


def test_failure_lists_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    _file("kang2018", tmp_path / "source")
    _register(monkeypatch, urls=("https://broken/1", "https://wrong/2"), checksum="md5:" + "0" * 32)
    monkeypatch.setattr(pooch, "retrieve", _fetch_from(tmp_path / "source", []))
    with pytest.raises(ConnectionError) as caught:
        load_dataset("kang2018", cache=tmp_path / "cache")
    message = str(caught.value)
    assert "https://broken/1 (OSError: no route" in message
    assert "https://wrong/2 (ValueError: hash of downloaded file does not match)" in message
    assert "pass path=" in message
    assert str(tmp_path / "cache" / "kang_2018.h5ad") in message


def test_unverified_files_are_fetched_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    _file("mcfarland2020", tmp_path / "source")
    monkeypatch.setattr(pooch, "retrieve", _fetch_from(tmp_path / "source", []))
    with pytest.raises(ValueError, match=r"No checksum is known for 'mcfarland2020'.*path="):
        load_dataset("mcfarland2020", cache=tmp_path)
    adata = load_dataset("mcfarland2020", cache=tmp_path, allow_unverified=True)
    assert adata.n_obs == 3
