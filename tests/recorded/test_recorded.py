"""Outputs are what they were: of every model, predictor, metric, split and sampler.

A commit that only moves code changes none of them. To show it bit for bit, on one machine::

    OMP_NUM_THREADS=1 python -m tests.recorded.write                # at the commit before
    SCVI_PERTURB_EXACT=1 OMP_NUM_THREADS=1 pytest tests/recorded    # at the commit after

A commit that changes numbers records them anew with the first line and says which and why.
"""

from __future__ import annotations

import os

import pytest

import scvi_perturb
from scvi_perturb.metrics import OWN_METRICS
from scvi_perturb.predictors import PREDICTORS
from tests.recorded._outputs import GROUPS, MODELS
from tests.recorded._summary import differ, tolerance_of
from tests.recorded.write import outputs_of, read

EXACT = os.environ.get("SCVI_PERTURB_EXACT") == "1"
RECORD = read()


# Whether a screen this small is outside what calibration covers is no matter here.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("group", GROUPS)
def test_outputs_are_what_they_were(group):
    found, recorded = outputs_of(group), RECORD[group]
    assert list(found) == list(recorded), "other outputs, or in another order"
    changed = []
    for name, value in found.items():
        tolerance = None if EXACT else tolerance_of(group, name)
        if differ(value, recorded[name], tolerance=tolerance):
            changed.append(f"{name}\n    recorded {recorded[name]}\n    found    {value}")
    assert not changed, f"{len(changed)} of {len(found)} outputs changed:\n" + "\n".join(changed)


def test_everything_is_recorded():
    assert list(RECORD) == list(GROUPS)
    public = {name: getattr(scvi_perturb.model, name) for name in scvi_perturb.model.__all__}
    bases = {base for cls in public.values() for base in cls.__mro__[1:]}
    models = {name for name, cls in public.items() if cls not in bases}
    assert {name for name, _ in MODELS.values()} == models
    assert {f"predictor {name}" for name in PREDICTORS} <= set(RECORD)
    scored = {name.split(".")[1] for name in RECORD["metrics"]}
    assert set(OWN_METRICS) <= scored
