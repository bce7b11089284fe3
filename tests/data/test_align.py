"""Genes by name: in the order of training, or not at all."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb._core import SchemaError
from scvi_perturb.data.reader import align_genes

GENES = ["g0", "g1", "g2", "g3"]


def cells(genes):
    """Return cells whose counts say which gene they are of."""
    counts = np.array([[int(gene[1:]) + 1 for gene in genes]] * 2, dtype=np.float32)
    adata = AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=genes))
    adata.layers["twice"] = 2 * adata.X
    return adata


def test_nothing_is_copied_when_nothing_has_to_change():
    adata = cells(GENES)
    assert align_genes(adata, GENES) is adata
    assert align_genes(adata, tuple(GENES)) is adata


@pytest.mark.parametrize("genes", [GENES[::-1], ["g9", "g2", "g0", "g7", "g1", "g3"]])
def test_genes_are_reordered_and_others_dropped(genes):
    adata = cells(genes)
    found = align_genes(adata, GENES)
    assert found.var_names.tolist() == GENES
    np.testing.assert_array_equal(found.X.toarray(), [[1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(found.layers["twice"].toarray(), [[2, 4, 6, 8]] * 2)
    assert not found.is_view
    assert adata.var_names.tolist() == genes, "the data given are left alone"


def test_same_number_of_other_genes_is_noticed():
    with pytest.raises(SchemaError, match=r"1 of the 4 genes .* missing, e.g. \['g3'\].*'g0'"):
        align_genes(cells(["g0", "g1", "g2", "g8"]), GENES)


def test_missing_genes_are_counted_and_named():
    with pytest.raises(SchemaError, match=r"3 of the 4 .*\['g0', 'g1', 'g2'\]"):
        align_genes(cells(["g3"]), GENES)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_repeated_names_are_refused():
    with pytest.raises(SchemaError, match=r"not unique \(\['g1'\].*var_names_make_unique"):
        align_genes(cells(["g0", "g1", "g1", "g2", "g3"]), GENES)


def test_backed_cells_are_read(tmp_path):
    cells(GENES[::-1]).write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = align_genes(backed, GENES)
    assert not found.isbacked
    np.testing.assert_array_equal(found.X.toarray(), [[1, 2, 3, 4]] * 2)
    again = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert align_genes(again, GENES[::-1]) is again


def test_views_become_data_of_their_own():
    adata = cells(GENES[::-1])
    found = align_genes(adata[:1], GENES)
    found.X[0, 0] = 50
    assert adata.X.max() == 4
