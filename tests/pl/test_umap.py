"""Real and predicted cells in one UMAP."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex
from scipy import sparse

from scvi_perturb import SchemaError
from scvi_perturb.pl import umap_real_and_predicted

N_GENES = 40


def _cells(shift: float, labels: list[str | None], seed: int) -> AnnData:
    """Poisson counts; half of the genes are `shift` times as high."""
    rate = np.ones(N_GENES) * 3
    rate[: N_GENES // 2] *= shift
    counts = np.random.default_rng(seed).poisson(rate, size=(len(labels), N_GENES))
    return AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"perturbation": labels}, index=[f"{seed}_{i}" for i in range(len(labels))]
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]),
    )


@pytest.fixture(scope="module")
def cells() -> tuple[AnnData, AnnData]:
    import anndata

    control = _cells(1.0, ["control"] * 40, 0)
    treated = _cells(4.0, ["A"] * 40, 1)
    return anndata.concat([control, treated]), _cells(4.0, ["A"] * 30, 2)


@pytest.fixture(scope="module")
def axes(cells) -> list[plt.Axes]:
    made = umap_real_and_predicted(*cells)
    yield made
    plt.close(made[0].figure)


def _points(ax: plt.Axes, colour: str) -> np.ndarray:
    """Positions of the points of a colour that are in the plot."""
    found = [np.empty((0, 2))]
    for drawn in ax.collections:
        where, tones = np.asarray(drawn.get_offsets()), drawn.get_facecolors()
        tones = np.broadcast_to(tones, (len(where), 4)) if len(tones) else np.empty((0, 4))
        found += [where[[i]] for i, tone in enumerate(tones) if to_hex(tone) == colour.lower()]
    return np.concatenate(found)


def test_predicted_cells_lie_with_the_real_cells_of_their_condition(axes):
    real, predicted = axes
    legend = {
        text.get_text(): to_hex(handle.get_facecolor()[0])
        for text, handle in zip(
            predicted.get_legend().get_texts(), predicted.get_legend().legend_handles, strict=True
        )
    }
    assert list(legend) == ["A", "control"]
    treated, control = (_points(real, legend[name]) for name in ("A", "control"))
    drawn = _points(predicted, legend["A"])
    assert (len(treated), len(control), len(drawn)) == (40, 40, 30)
    near, far = (np.linalg.norm(drawn.mean(0) - cloud.mean(0)) for cloud in (treated, control))
    assert near < far / 3


def test_both_panels_have_the_same_limits_and_real_cells_lie_behind(axes):
    real, predicted = axes
    assert real.get_xlim() == predicted.get_xlim()
    assert real.get_ylim() == predicted.get_ylim()
    behind = np.asarray(predicted.collections[0].get_offsets())
    assert len(behind) == 80


def test_genes_are_matched_by_name(cells):
    real, predicted = cells
    with pytest.raises(SchemaError, match="genes"):
        umap_real_and_predicted(real, predicted[:, :10].copy())


def test_a_missing_column_is_named(cells):
    real = cells[0].copy()
    real.obs["kind"] = "x"
    with pytest.raises(SchemaError, match=r"predicted cells has no column 'kind'"):
        umap_real_and_predicted(real, cells[1], color="kind")


def test_two_axes_are_needed(cells):
    figure, ax = plt.subplots()
    with pytest.raises(ValueError, match="give two"):
        umap_real_and_predicted(*cells, axes=[ax])
    plt.close(figure)
