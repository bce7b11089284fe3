"""Requests are read once, by one rule: nothing that has several values is guessed."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from scvi_perturb import PerturbDiffusion, SchemaError
from scvi_perturb.data import Component, Condition, ScreenKeys, SplitOptions, split
from scvi_perturb.data.request import parse_conditions, parse_request, request_table
from scvi_perturb.predictors import NoChange
from scvi_perturb.testing import NEW_PAIR, SETUP, SINGLE, make_screen

KEYS = ScreenKeys("drug", dose="nM", time="hours", kind="how")
KNOWN = [
    Condition(),
    Condition((Component("x", 5, "drug"),), time=6),
    Condition((Component("y", 1, "drug"), Component("z", 10, "CRISPRi")), time=6),
    Condition((Component("y", 2, "drug"),), time=6),
]


def parsed(conditions, known=KNOWN, keys=KEYS):
    return parse_conditions(request_table(conditions, keys), keys, known)


def test_the_only_value_is_taken_and_several_are_refused():
    assert parsed(["x", "control", "z+x"]) == [
        KNOWN[1],
        KNOWN[0],
        Condition((Component("x", 5, "drug"), Component("z", 10, "CRISPRi")), time=6),
    ]
    with pytest.raises(SchemaError, match=r"dose of 'y' .*the screen has 2 \(1.0, 2.0\).*'nM'"):
        parsed(["x", "y"])
    late = replace(KNOWN[1], time=24)
    with pytest.raises(SchemaError, match=r"time of .* must be given.*\(6.0, 24.0\).*'hours'"):
        parsed(["x"], [*KNOWN, late])


def test_what_is_given_is_taken_as_it_is():
    table = pd.DataFrame({"drug": ["y", "x"], "nM": ["2", None], "hours": [24, None]})
    assert parsed(table) == [replace(KNOWN[3], time=24), KNOWN[1]]


def test_of_no_known_conditions_doses_have_to_be_given():
    with pytest.raises(SchemaError, match=r"dose of 'x' must be given: the screen has 0\. Ask"):
        parsed(["x"], ())
    given = pd.DataFrame({"drug": ["x"], "nM": [3]})
    assert parsed(given, ()) == [Condition((Component("x", 3),))]


def frame(*names, dose):
    return pd.DataFrame({"perturbation": list(names), "dose": dose})


@pytest.mark.parametrize(
    ("doses", "asked", "refused"),
    [
        ((5.0,), [SINGLE, NEW_PAIR, "control"], None),
        ((5.0,), frame(SINGLE, "control", dose=[None, None]), None),
        ((1.0, 10.0), ["control"], None),
        ((1.0, 10.0), frame(SINGLE, NEW_PAIR, dose=[3.0, "1+10"]), None),
        ((1.0, 10.0), [SINGLE], SINGLE),
        ((1.0, 10.0), frame(SINGLE, NEW_PAIR, dose=[10.0, None]), "pert_01"),
    ],
)
def test_models_and_predictors_read_a_request_alike(doses, asked, refused):
    """Also where a split holds doses out: the others are not taken for the only ones."""
    screen = make_screen(doses=doses, n_perturbations=4, n_combinations=3)
    PerturbDiffusion.setup_anndata(screen, **SETUP, dose_key="dose")
    model = PerturbDiffusion(screen, n_latent=2, n_hidden=4, n_layers=1)
    keys = model._screen.keys
    parts = split(screen, "cells", seed=0)
    if len(doses) > 1:
        parts = split(screen, "dose", keys=keys, fraction=0.99, options=SplitOptions(dose="top"))
        seen = screen.obs.iloc[parts.train]
        assert seen.loc[seen["perturbation"] == SINGLE, "dose"].unique().tolist() == ["1"]
    predictor = NoChange().fit(screen, parts, keys=replace(keys, context=SETUP["context_keys"]))
    if refused is not None:
        told = rf"dose of '{refused}' must be given: the screen has 2 \(1.0, 10.0\).*'dose'"
        with pytest.raises(SchemaError, match=told):
            parse_request(asked, model._screen)
        with pytest.raises(SchemaError, match=told):
            predictor.predict(asked)
        return
    read = list(parse_request(asked, model._screen).conditions)
    assert (
        parse_conditions(predictor.predict(asked).obs[["perturbation", "dose"]], keys, ()) == read
    )
