"""Predictors of the mean, on a screen whose answers can be written down."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import UNS_KEY, NotTrainedError, SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys, split
from scvi_perturb.predictors import PREDICTORS, Additive, ContextMean, NoChange, Predictor
from scvi_perturb.testing import moved_split
from tests.predictors._effects import build
from tests.predictors._screen import CONTROL, GENES, expected_counts, log_profile, make_screen

CONTEXT = ["cell_type"]
MEANS = [NoChange, ContextMean, Additive]


def joined(*parts):
    joined = anndata.concat(parts, index_unique="-")
    joined.obs_names_make_unique()
    return joined


def logged(adata):
    adata.X = adata.X.log1p()
    return adata


def without_type(adata):
    adata.obs.iloc[0, 1] = None
    return adata


def ask(perturbation, cell_type):
    return pd.DataFrame({"perturbation": [perturbation], "cell_type": [cell_type]})


def change(perturbation, cell_type):
    made = log_profile(expected_counts(perturbation, cell_type))
    return made - log_profile(CONTROL[cell_type])


@pytest.mark.parametrize("profile", ["pseudobulk", "cell_mean"])
@pytest.mark.parametrize("cls", MEANS)
def test_control_in_no_change_out(screen, cls, profile):
    made = (
        cls(profile=profile)
        .fit(screen, keys=ScreenKeys(context=CONTEXT))
        .predict(ask("control", "B"))
    )
    np.testing.assert_allclose(made.X[0], log_profile(CONTROL["B"]), rtol=1e-5)
    assert not made.layers["lfc"].any()
    assert made.var_names.tolist() == GENES


def test_no_change_knows_no_perturbation_and_refuses_none(screen):
    made = NoChange().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("never seen", "T"))
    np.testing.assert_allclose(made.X[0], log_profile(CONTROL["T"]), rtol=1e-5)


def test_context_mean_takes_the_other_contexts_only():
    screen = make_screen([("control", t) for t in ("T", "B")] + [("A", "B"), ("A", "T")])
    made = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("A", "T"))
    np.testing.assert_allclose(made.layers["lfc"][0], change("A", "B"), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        made.X[0], log_profile(CONTROL["T"]) + change("A", "B"), rtol=1e-4, atol=1e-6
    )


def test_each_context_counts_once_whatever_its_cells():
    few, many = make_screen([("A", "T")], n=1), make_screen([("A", "B")], n=30)
    controls = make_screen([("control", "T"), ("control", "B")])
    screen = joined(few, many, controls)
    predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    made = predictor.predict(["A"])
    mean = (change("A", "T") + change("A", "B")) / 2
    np.testing.assert_allclose(made.layers["lfc"][0], mean, rtol=1e-4, atol=1e-6)


def test_mean_over_perturbations_of_the_same_context(screen):
    predictor = ContextMean("perturbations").fit(screen, keys=ScreenKeys(context=CONTEXT))
    made = predictor.predict(ask("never seen", "B"))
    mean = (change("A", "B") + change("C", "B")) / 2
    np.testing.assert_allclose(made.layers["lfc"][0], mean, rtol=1e-4, atol=1e-6)


def test_context_mean_says_what_it_cannot_know(screen):
    predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    with pytest.raises(UnknownPerturbationError, match=r"'Cx'.*C"):
        predictor.predict(ask("Cx", "T"))
    alone = ContextMean().fit(
        make_screen([("control", "T"), ("A", "T")]), keys=ScreenKeys(context=CONTEXT)
    )
    with pytest.raises(SchemaError, match=r"'A' was measured in context .*alone"):
        alone.predict(ask("A", "T"))
    with pytest.raises(ValueError, match=r"'rows' is not known; choose one of .*'contexts'"):
        ContextMean("rows")
    unseen = make_screen([("control", "T"), ("control", "B"), ("A", "B")])
    with pytest.raises(SchemaError, match="No perturbation was measured"):
        ContextMean("perturbations").fit(unseen, keys=ScreenKeys(context=CONTEXT)).predict(
            ask("A", "T")
        )


def test_additive_sums_singles_of_the_context(screen):
    made = Additive().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("C+A", "T"))
    expected = change("A", "T") + change("C", "T")
    np.testing.assert_allclose(made.layers["lfc"][0], expected, rtol=1e-4, atol=1e-6)
    assert made.obs["perturbation"].tolist() == ["A+C"]


def test_additive_does_not_look_at_the_measured_combination(screen):
    with_pair = joined(screen, make_screen([("A+C", "T")]))
    first = Additive().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("A+C", "T"))
    second = Additive().fit(with_pair, keys=ScreenKeys(context=CONTEXT)).predict(ask("A+C", "T"))
    np.testing.assert_array_equal(first.X, second.X)


def test_additive_takes_a_single_from_other_contexts_where_it_must():
    screen = make_screen([("control", "T"), ("control", "B"), ("A", "T"), ("A", "B"), ("C", "B")])
    made = Additive().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("A+C", "T"))
    expected = change("A", "T") + change("C", "B")
    np.testing.assert_allclose(made.layers["lfc"][0], expected, rtol=1e-4, atol=1e-6)


def test_additive_refuses_a_component_that_was_never_measured_alone():
    screen = make_screen([("control", "T"), ("A", "T"), ("A+C", "T")])
    predictor = Additive().fit(screen)
    with pytest.raises(UnknownPerturbationError, match=r"'C' was not trained on.*A"):
        predictor.predict(["A+C"])


def test_doses_are_other_conditions(screen):
    screen.obs["dose"] = np.where(screen.obs["perturbation"] == "control", 0, 10)
    keys = ScreenKeys("perturbation", dose="dose")
    predictor = Additive().fit(screen, keys=replace(keys, context=CONTEXT))
    table = ask("A", "T").assign(dose=10)
    np.testing.assert_allclose(
        predictor.predict(table).layers["lfc"][0], change("A", "T"), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(UnknownPerturbationError, match=r"A \(dose 5\)"):
        predictor.predict(table.assign(dose=5))


def test_held_out_cells_are_not_seen(screen):
    """Whatever stands in the test cells, the prediction is the same."""
    made = split(screen, "context_transfer", keys=ScreenKeys(context=CONTEXT), fraction=0.25)
    spoilt = screen.copy()
    counts = spoilt.X.toarray()
    counts[made.test] = 7
    spoilt.X = counts
    held = pd.DataFrame([row["context"] | {"perturbation": row["perturbation"]}
                         for row in made.held_out])  # fmt: skip
    for cls in MEANS:
        first = cls().fit(screen, made, keys=ScreenKeys(context=CONTEXT)).predict(held)
        second = (
            cls()
            .fit(spoilt, moved_split(made, spoilt), keys=ScreenKeys(context=CONTEXT))
            .predict(held)
        )
        np.testing.assert_array_equal(first.X, second.X)


def test_a_split_of_other_data_is_refused(screen):
    made = split(screen, "cells", fraction=0.3)
    with pytest.raises(SchemaError, match="other data"):
        NoChange().fit(screen[::-1].copy(), made)


@pytest.mark.parametrize("kind", ["layer", "dense", "csc", "backed"])
def test_where_the_counts_are_makes_no_difference(screen, kind, tmp_path):
    expected = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(["A", "C"]).X
    layer = None
    if kind == "layer":
        screen.layers["counts"], screen.X = screen.X.copy(), screen.X * 0.5
        layer = "counts"
    elif kind == "dense":
        screen.X = screen.X.toarray()
    elif kind == "csc":
        screen.X = screen.X.tocsc()
    else:
        screen.write_h5ad(tmp_path / "screen.h5ad")
        screen = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    made = (
        ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT, layer=layer)).predict(["A", "C"])
    )
    np.testing.assert_allclose(made.X, expected, rtol=1e-6)


def test_a_reference_of_a_new_context_in_another_order_of_genes(screen):
    new = make_screen([("control", "T")])
    new.obs["cell_type"] = "new"
    new = new[:, ::-1].copy()
    predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    made = predictor.predict(["A"], reference=new)
    mean = (change("A", "T") + change("A", "B")) / 2
    assert made.obs["cell_type"].tolist() == ["new"]
    np.testing.assert_allclose(made.X[0], log_profile(CONTROL["T"]) + mean, rtol=1e-4, atol=1e-6)


def test_the_reference_says_the_context(screen):
    predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    reference = make_screen([("control", "T")])
    np.testing.assert_allclose(
        predictor.predict(["A"], reference=reference).X, predictor.predict(ask("A", "T")).X
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a[:0].copy(), "no cells"),
        (lambda a: a[:, 1:].copy(), "g0"),
        (lambda a: make_screen([("A", "T")]), "3 of 3 reference cells are perturbed"),
        (logged, "raw counts"),
    ],
)
def test_references_that_cannot_serve(screen, spoil, message):
    predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    with pytest.raises(SchemaError, match=message):
        predictor.predict(["A"], reference=spoil(make_screen([("control", "T")])))


def test_a_reference_that_contradicts_the_request(screen):
    predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    with pytest.raises(SchemaError, match="No reference cell has context"):
        predictor.predict(ask("A", "B"), reference=make_screen([("control", "T")]))
    with pytest.raises(SchemaError, match=r"No training control has context .*there are"):
        predictor.predict(ask("A", "new"))


def test_contexts_without_controls_are_left_out_aloud():
    screen = make_screen([("control", "T"), ("A", "T"), ("A", "B")])
    with pytest.warns(UserWarning, match="no control cell"):
        predictor = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT))
    made = predictor.predict(["A"])
    np.testing.assert_allclose(made.layers["lfc"][0], change("A", "T"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a[a.obs["perturbation"] != "control"].copy(), "control"),
        (logged, "raw counts"),
        (without_type, "missing for 1 cells"),
    ],
)
def test_screens_that_cannot_be_fitted(screen, spoil, message):
    with pytest.raises(SchemaError, match=message):
        NoChange().fit(spoil(screen), keys=ScreenKeys(context=CONTEXT))


def test_messages(screen):
    with pytest.raises(NotTrainedError, match="fit"):
        NoChange().predict(["A"])
    with pytest.raises(SchemaError, match="no layer 'raw'"):
        NoChange().fit(screen, keys=ScreenKeys(layer="raw"))
    with pytest.raises(SchemaError, match="no column 'donor'"):
        NoChange().fit(screen, keys=ScreenKeys(context=["donor"]))
    with pytest.raises(ValueError, match="'median' is not known"):
        NoChange(profile="median")


@pytest.mark.parametrize("labels", ["text", "categories", "integers"])
def test_labels_of_any_type(screen, labels):
    expected = Additive().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("A", "T")).X
    asked, control = "A", "control"
    if labels == "categories":
        screen.obs = screen.obs.astype("category")
    elif labels == "integers":
        codes = {"control": 0, "A": 1, "C": 2}
        screen.obs["perturbation"] = screen.obs["perturbation"].map(codes)
        asked, control = "1", "0"
    keys = ScreenKeys("perturbation", control=control)
    made = Additive().fit(screen, keys=replace(keys, context=CONTEXT)).predict(ask(asked, "T"))
    np.testing.assert_array_equal(made.X, expected)


def test_answers_are_annotated_and_can_be_written(screen, tmp_path):
    made = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(["A", "control"])
    made.write_h5ad(tmp_path / "made.h5ad")
    read = anndata.read_h5ad(tmp_path / "made.h5ad")
    assert read.uns[UNS_KEY]["model"] == "context_mean"
    assert read.uns[UNS_KEY]["units"] == "log1p(counts per 10,000)"
    assert read.obs["perturbation"].tolist() == ["A", "control"]


def test_the_input_is_left_alone(screen):
    before = screen.copy()
    Additive().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(
        ask("A", "T"), reference=screen[:3].copy()
    )
    np.testing.assert_array_equal(screen.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(screen.obs, before.obs)
    assert not screen.uns


def test_all_predictors_are_registered_under_their_names(screen):
    for name, cls in PREDICTORS.items():
        made = build(cls)
        assert cls().name == name
        assert isinstance(made, Predictor)
        assert made.fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("A", "T")).shape == (
            1,
            6,
        )


def test_one_context_key_may_be_given_as_text(screen):
    first = ContextMean().fit(screen, keys=ScreenKeys(context="cell_type")).predict(ask("A", "T"))
    second = ContextMean().fit(screen, keys=ScreenKeys(context=CONTEXT)).predict(ask("A", "T"))
    np.testing.assert_array_equal(first.X, second.X)
