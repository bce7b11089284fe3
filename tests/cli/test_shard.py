"""A screen is written as shards."""

from __future__ import annotations

import numpy as np

from scvi_perturb.cli import main
from scvi_perturb.data import open_shards, read_screen


def test_shards_are_written_and_what_is_left_out_is_said(foreign_file, capsys, tmp_path):
    out = tmp_path / "shards.zarr"
    asked = ["shard", str(foreign_file), str(out), "--layer", "umis", "--seed", "3"]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "420 cells x 60 genes" in printed
    assert "left out: truth_identity, truth_state, truth_technical, X" in printed
    found, before = open_shards(out).to_memory(), read_screen(foreign_file)
    assert (found.obs_names != before.obs_names).any()
    expected = before[found.obs_names].layers["umis"]
    np.testing.assert_array_equal(found.X.toarray(), expected.toarray())
    assert main(asked) == 2
    assert "already exists. Name another folder, or pass --overwrite" in capsys.readouterr().err
    assert main([*asked, "--overwrite", "--in-order", "--buffer", "50"]) == 0
    np.testing.assert_array_equal(open_shards(out).obs_names, before.obs_names)


def test_what_cannot_be_sharded_is_one_line(foreign_file, capsys, tmp_path):
    for given, message in (
        ([str(tmp_path / "none.h5ad")], "There is no file"),
        ([str(foreign_file), "--layer", "counts"], "Layer 'counts' was not found"),
        ([str(foreign_file), "--buffer", "-1"], "buffer"),
    ):
        assert main(["shard", given[0], str(tmp_path / "out"), *given[1:]]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
