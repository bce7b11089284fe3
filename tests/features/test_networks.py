"""Vectors of networks, and of the targets of drugs."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.features import (
    PerturbationFeatures,
    network_embedding,
    rename_genes,
    target_features,
)


def cliques(size=5):
    """Return the edges of two cliques, A and B, with a bridge."""
    pairs = [(f"{c}{i}", f"{c}{j}") for c in "AB" for i in range(size) for j in range(i)]
    return pd.DataFrame([*pairs, ("A0", "B0")], columns=["one", "other"])


def drawn(n_names=40, n_edges=150, seed=0):
    random = np.random.default_rng(seed)
    ends = random.integers(n_names, size=(n_edges, 2))
    ring = np.column_stack([np.arange(n_names), np.roll(np.arange(n_names), 1)])
    names = np.array([f"g{i:03d}" for i in range(n_names)])
    return pd.DataFrame(names[np.vstack([ends, ring])], columns=["a", "b"])


def walk_kernel(edges):
    """Return the random walk with restart of a half, less what degrees alone say, by algebra."""
    names = sorted(set(edges.to_numpy().ravel()))
    joined = np.zeros((len(names), len(names)))
    for a, b in edges.to_numpy():
        if a != b:
            joined[names.index(a), names.index(b)] = joined[names.index(b), names.index(a)] = 1
    degree = joined.sum(axis=0)
    walk = joined / np.sqrt(np.outer(degree, degree))
    kernel = 0.5 * np.linalg.inv(np.eye(len(names)) - 0.5 * walk)
    return kernel - np.sqrt(np.outer(degree, degree)) / degree.sum()


def unit(kernel):
    size = np.sqrt(np.diagonal(kernel))
    return kernel / np.outer(size, size)


@pytest.mark.parametrize("kind", ["diffusion", "heat", "spectral"])
def test_names_of_a_module_are_near_each_other(kind):
    table = network_embedding(cliques(), kind=kind, n_components=2).drop(index=["A0", "B0"])
    likeness = table.to_numpy() @ table.to_numpy().T
    same = np.array([[a[0] == b[0] for a in table.index] for b in table.index])
    assert likeness[same].min() > likeness[~same].max()
    np.testing.assert_allclose(np.diagonal(likeness), 1.0)


def test_products_of_all_components_are_a_random_walk_with_restart():
    edges = drawn()
    made = network_embedding(edges, n_components=10_000).to_numpy()
    np.testing.assert_allclose(made @ made.T, unit(walk_kernel(edges)), atol=1e-8)


def test_the_solver_of_large_networks_finds_the_same_components():
    edges = drawn(n_names=520, n_edges=2_000)
    few = network_embedding(edges, kind="spectral", n_components=6, seed=1).to_numpy()
    every = network_embedding(edges, kind="spectral", n_components=519).to_numpy()
    # rows of both have length 1, so directions are compared by ratios within a row
    ratio = few[:, 1] / few[:, 0]
    np.testing.assert_allclose(ratio, every[:, 1] / every[:, 0], rtol=1e-5, atol=1e-6)


def test_signs_and_values_do_not_depend_on_the_order_of_edges():
    edges = drawn()
    turned = edges.sample(frac=1.0, random_state=0)[["b", "a"]]
    first, second = network_embedding(edges), network_embedding(turned)
    pd.testing.assert_frame_equal(first, second, check_names=False, atol=1e-9)


def test_names_without_an_edge_or_in_a_small_piece_are_missing_not_zero():
    edges = pd.concat([cliques(), pd.DataFrame({"one": ["X", "Z"], "other": ["Y", "Z"]})])
    with pytest.warns(UserWarning, match="2 of 12 names are not joined to the largest piece"):
        table = network_embedding(edges)
    features = PerturbationFeatures({"network": table})
    assert not {"X", "Y", "Z"} & set(features.names)
    assert (np.linalg.norm(table, axis=1) > 0.99).all()


def test_a_file_of_links_is_cut_by_score_and_put_into_symbols(tmp_path):
    lines = ["protein1 protein2 combined_score"]
    symbols = {"E1": "JAK1", "E2": "JAK2", "E3": "STAT1", "E4": "MYC"}
    full = {f"ENSP0000000{key[1]}": symbol for key, symbol in symbols.items()}
    scores = [("1", "2", 900), ("2", "3", 800), ("1", "3", 700), ("3", "4", 150)]
    lines += [f"ENSP0000000{a}.2 ENSP0000000{b} {score}" for a, b, score in scores]
    path = tmp_path / "links.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    table = network_embedding(path, min_score=700, names=full)
    assert table.index.tolist() == ["JAK1", "JAK2", "STAT1"]
    assert table.attrs["provenance"]["n_edges"] == 3
    assert network_embedding(path, names=full).index.tolist() == sorted(full.values())


def test_regulators_of_the_same_targets_with_opposite_signs_are_opposed():
    edges = pd.DataFrame(
        [(tf, f"t{i}", sign) for tf, sign in (("UP", 1), ("ALSO", 1), ("DOWN", -1))
         for i in range(4)],
        columns=["tf", "target", "mor"],
    )  # fmt: skip
    out = network_embedding(edges, score="mor", direction="out", n_components=1)
    assert out.index.tolist() == ["ALSO", "DOWN", "UP"]
    np.testing.assert_allclose(out.loc["UP"] * out.loc["ALSO"], 1.0)
    np.testing.assert_allclose(out.loc["UP"] * out.loc["DOWN"], -1.0)
    targets = network_embedding(edges, score="mor", direction="in", n_components=1)
    assert targets.index.tolist() == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {"ENSG1": "MYC"}}, "None of the 10 names"),
        ({"score": "weight"}, "expected two ends and a column 'weight'"),
        ({"min_score": 2.0}, "No edge has a score of 2 or more: they are 1 to 1"),
        ({"score": "other"}, "not finite numbers"),
    ],
)
def test_edges_that_cannot_be_used_are_refused(options, message):
    edges = cliques().assign(score=1.0)
    with pytest.raises(SchemaError, match=message):
        network_embedding(edges, **options)


@pytest.mark.parametrize(
    ("ends", "options", "message"),
    [
        ([("MYC", ""), ("MYC", None)], {}, "2 of 2 edges lack an end"),
        ([("MYC", "JAK2"), ("MYC", "TYK2")], {"direction": "out"}, "tells none from another"),
    ],
)
def test_edges_that_say_nothing_are_refused(ends, options, message):
    with pytest.raises(SchemaError, match=message):
        network_embedding(pd.DataFrame(ends, columns=["a", "b"]), **options)


def test_a_gene_called_like_a_missing_value_is_a_name(tmp_path):
    (tmp_path / "links.csv").write_text("a,b\nNA,NAN\nNAN,MYC\n")
    assert network_embedding(tmp_path / "links.csv").index.tolist() == ["MYC", "NA", "NAN"]


def test_all_components_of_a_large_directed_network_are_found():
    rng = np.random.default_rng(0)
    ends = {
        "a": [f"r{i}" for i in rng.integers(0, 510, 4000)],
        "b": [f"t{i}" for i in rng.integers(0, 520, 4000)],
    }
    table = network_embedding(pd.DataFrame(ends), direction="out", n_components=1000)
    assert table.shape == (510, 509)
    np.testing.assert_allclose((table**2).sum(axis=1), 1.0)


def test_edges_of_names_with_themselves_are_none():
    with pytest.raises(SchemaError, match="no edge between two different names"):
        network_embedding(pd.DataFrame({"a": ["X"], "b": ["X"]}))


# Other names -----------------------------------------------------------------------------------


def test_versions_do_not_count_and_several_partners_are_reported():
    table = pd.DataFrame(
        {"x": [1.0, 2.0, 3.0]}, index=["ENSG00000000001.3", "ENSG00000000002", "?"]
    )
    pairs = pd.DataFrame(
        {"symbol": ["A", "B", "B2"], "id": ["ENSG00000000001", *["ENSG00000000002.9"] * 2]}
    )
    with (
        pytest.warns(UserWarning, match="1 names have several partners.*'ENSG00000000002'"),
        pytest.warns(UserWarning, match=r"1 of 3 names have no partner.*'\?'"),
    ):
        made = rename_genes(table, pairs)
    assert made["x"].to_dict() == {"A": 1.0, "B": 2.0, "B2": 2.0}


def test_var_says_the_symbols():
    var = pd.DataFrame({"symbol": ["MYC", "JAK2"]}, index=["ENSG1", "ENSG2"])
    table = pd.DataFrame({"x": [1.0, 2.0]}, index=["JAK2", "MYC"])
    assert rename_genes(table, var["symbol"])["x"].to_dict() == {"ENSG1": 2.0, "ENSG2": 1.0}


def test_rows_that_differ_are_not_put_under_one_name():
    table = pd.DataFrame({"x": [1.0, 2.0, 5.0, 5.0]}, index=list("abcd"))
    with pytest.raises(SchemaError, match="1 names get rows that differ: 'A'"):
        rename_genes(table, {"a": "A", "b": "A", "c": "C", "d": "C"})
    made = rename_genes(table.loc[["a", "c", "d"]], {"a": "A", "b": "A", "c": "C", "d": "C"})
    assert made["x"].to_dict() == {"A": 1.0, "C": 5.0}


# Targets ---------------------------------------------------------------------------------------


def test_targets_are_columns_however_they_are_written(tmp_path):
    wide = pd.DataFrame({"drug": ["a", "b", "c"], "target": ["EGFR, HER2", "HER2", None]})
    long = pd.DataFrame({"target": ["EGFR", "HER2", "HER2"], "drug": ["a", "a", "b"]})
    path = tmp_path / "targets.tsv"
    wide.to_csv(path, sep="\t", index=False)
    expected = {"EGFR": {"a": 1, "b": 0}, "HER2": {"a": 1, "b": 1}}
    for made in (
        target_features(wide, separator=","),
        target_features(path, separator=","),
        target_features(long, drug="drug", target="target"),
        target_features({"a": ["EGFR", "HER2"], "b": ["HER2"]}),
    ):
        assert made.to_dict() == expected
    with pytest.warns(UserWarning, match="1 of 3 drugs have no target in the table.*'d'"):
        shared = target_features({"a": ["EGFR", "HER2"], "b": ["HER2"], "d": ["KIT"]}, min_drugs=2)
    assert shared.to_dict() == {"HER2": {"a": 1, "b": 1}}


def test_a_drug_is_the_mean_of_its_targets_in_a_network():
    vectors = network_embedding(cliques(), n_components=3)
    with pytest.warns(UserWarning, match="1 of 3 drugs have no target with a vector.*'none'"):
        made = target_features({"x": ["A1", "B1"], "y": ["A1", "?"], "none": ["?"]}, vectors)
    np.testing.assert_allclose(made.loc["x"], vectors.loc[["A1", "B1"]].mean())
    np.testing.assert_allclose(made.loc["y"], vectors.loc["A1"])
    assert made.attrs["provenance"]["of_targets"]["made_by"] == "network_embedding"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"a": []}, {}, "No drug has a target"),
        ({"a": ["X"]}, {"min_drugs": 3}, "No target is shared by 3 drugs"),
        (pd.DataFrame({"drug": ["a"], "gene": ["X"]}), {"target": "target"}, "'target'.*not found"),
        (pd.DataFrame([["a", "Aspirin", "X"]], columns=["id", "name", "gene"]), {}, "Name both"),
        (
            {"a": ["X"]},
            {"vectors": pd.DataFrame({"x": [1.0, 2.0]}, index=["X", "X"])},
            r"\['X'\] come twice",
        ),
    ],
)
def test_targets_that_cannot_be_used_are_refused(arguments, options, message):
    with pytest.raises(SchemaError, match=message):
        target_features(arguments, **options)


def test_targets_under_other_identifiers_are_refused():
    with pytest.raises(SchemaError, match=r"None of the targets.*'HER2'.*'A0'"):
        target_features({"a": ["HER2"]}, network_embedding(cliques()))
