"""Running a study: everything once, on where it stopped, the same in several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_perturb._core import SchemaError
from scvi_perturb._files import UNFINISHED
from scvi_perturb.benchmark import TRIVIAL, Method, Record, Results, Study, Task, run
from scvi_perturb.data import SplitOptions
from scvi_perturb.predictors import Additive, ContextMean, NoChange
from tests._source import ROOT
from tests.benchmark._world import TASK

NAMES = ("no_change", "context_mean", "control_cells", "shifted_control")
METHODS = tuple(method for method in TRIVIAL if method.name in NAMES)


def study(**changes):
    return Study(**{"tasks": (TASK,), "methods": METHODS, "seeds": (0,)} | changes)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run(study(), tmp_path_factory.mktemp("results"))


def told():
    seen = []
    return seen, lambda record: seen.append((record.method, record.fold))


def test_every_method_is_judged_in_every_fold(results):
    status = results.status()
    assert (status["status"] == "ok").all()
    found = set(zip(status["method"], status["fold"], strict=True))
    assert found == {(name, fold) for name in (*NAMES, "replicate") for fold in (0, 1)}
    frame = results.frame()
    held = frame.groupby("fold")["perturbation"].unique()
    assert not set(held[0]) & set(held[1])
    assert len({*held[0], *held[1]}) == 12


def test_records_say_where_they_come_from(results):
    record = results.records()[0]
    made = record.provenance
    assert made["versions"]["scvi-perturb"]
    assert made["split"]["kind"] == "unseen_perturbation"
    assert made["split"]["parameters"]["fold"] == record.fold
    assert len(made["screen"]) == 64
    assert made["units"]["nmse"] == "share of the effect"
    assert record.cost == {} or record.cost["train_seconds"] > 0


def test_what_is_there_is_not_made_again(results):
    seen, tell = told()
    run(study(), results.folder, progress=tell)
    assert seen == []
    path = next(results.folder.rglob("shifted_control/seed0_fold1.json"))
    before = Record.read(path)
    path.unlink()
    run(study(), results.folder, progress=tell)
    assert seen == [("shifted_control", 1)]
    assert Record.read(path).scores == before.scores


def test_another_definition_is_made_anew(results):
    changed = study(tasks=(replace(TASK, max_cells=100),), methods=METHODS[:1])
    seen, tell = told()
    run(changed, results.folder, progress=tell)
    assert ("no_change", 0) in seen
    run(study(), results.folder)  # and back, for the other tests


def test_several_processes_give_the_same(results, tmp_path):
    again = run(study(), tmp_path, n_workers=2)
    keys = ["method", "fold", "condition", "metric"]
    one, two = (found.frame().sort_values(keys, ignore_index=True) for found in (results, again))
    pd.testing.assert_frame_equal(one, two, rtol=1e-6)


def test_local_functions_are_sent_to_processes(tmp_path):
    local = Method(name="local", make=lambda setting: NoChange(profile=setting.profile))
    found = run(study(methods=(local,), max_folds=1), tmp_path, n_workers=2)
    assert found.status().set_index("method").loc["local", "status"] == "ok"


def test_what_cannot_be_sent_is_named(tmp_path):
    holding = Method(name="holding", make=partial(_refusing, lock=threading.Lock()))
    with pytest.raises(SchemaError, match=r"Task 'simulated'.*cannot be sent.*no lock"):
        run(study(methods=(holding,)), tmp_path, n_workers=2)


class Faulty(NoChange):
    def predict(self, conditions, *, reference=None):
        msg = "by zero"
        raise ZeroDivisionError(msg)


class Choosy(Additive):
    """Know one condition only."""

    def _change(self, request):
        if str(request.condition) not in ("pert_03", "pert_04"):
            return super()._change(request)
        return np.zeros(len(self.profiles.var_names))


def _faulty(setting):
    return Faulty(profile=setting.profile)


def _refusing(setting, lock=None):
    del lock
    return Additive(profile=setting.profile)


def _choosy(setting):
    return Choosy(profile=setting.profile)


def test_refusals_and_faults_are_recorded(tmp_path):
    methods = (
        Method(name="faulty", make=_faulty),
        Method(name="refusing", make=_refusing),
        Method(name="choosy", make=_choosy),
        METHODS[0],
    )
    found = run(study(methods=methods), tmp_path)
    status = found.status().set_index(["method", "fold"])
    assert status.loc[("faulty", 0), "status"] == "failed"
    assert "ZeroDivisionError: by zero" in status.loc[("faulty", 0), "message"]
    assert status.loc[("refusing", 0), "status"] == "refused"
    assert "was not trained on" in status.loc[("refusing", 0), "message"]
    partial = [fold for fold in (0, 1) if status.loc[("choosy", fold), "status"] == "partial"]
    assert partial
    assert "refused" in status.loc[("choosy", partial[0]), "message"]
    frame = found.frame()
    assert set(frame.loc[frame["method"] == "choosy", "perturbation"]) <= {"pert_03", "pert_04"}
    summary = found.summary(n_boot=20)
    own = summary[(summary["method"] == "choosy") & (summary["metric"] == "nmse")].iloc[0]
    assert own["n_conditions"] == 2
    assert own["b"] != summary[summary["metric"] == "nmse"].set_index("method")["u"]["no_change"]


def test_a_folder_without_results():
    with pytest.raises(SchemaError, match="no results"):
        Results("nowhere").records()


def test_what_a_killed_process_left_unfinished_is_no_record(results, tmp_path):
    shutil.copytree(results.folder, tmp_path / "out")
    whole = next((tmp_path / "out" / "records").rglob("*.json"))
    for name, text in (("whole", whole.read_text()), ("half", whole.read_text()[:40])):
        whole.with_name(f"{UNFINISHED}{name}.json").write_text(text)
    frame = Results(tmp_path / "out", results.study).frame()
    pd.testing.assert_frame_equal(frame, results.frame())


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "records" / "a" / "b" / "seed0_fold0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(SchemaError, match="is not a record"):
        Results(tmp_path).records()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tasks": ()}, "no tasks"),
        ({"methods": ()}, "no methods"),
        ({"seeds": ()}, "no seeds"),
        ({"tasks": (TASK, TASK)}, "come twice"),
    ],
)
def test_studies_that_cannot_be_run(changes, what):
    with pytest.raises(ValueError, match=what):
        study(**changes)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "replicate"])
def test_names_of_methods_are_names_of_files(name):
    with pytest.raises(ValueError, match="name"):
        Method(name=name, make=_refusing)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_a_cluster(results, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed (extra scale)")
    try:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},  # to find this module
        )
        found = run(study(max_folds=1), tmp_path, backend="ray")
    finally:
        ray.shutdown()
    keys = ["method", "condition", "metric"]
    frame = results.frame()
    one = frame[frame["fold"] == 0].sort_values(keys, ignore_index=True)
    two = found.frame().sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(one, two, rtol=1e-6)


def test_strata_divide_the_conditions(results):
    whole = results.summary(n_boot=5).set_index(["method", "metric"])["n_conditions"]
    parts = results.strata("effect", n=3, n_boot=5)
    assert parts["stratum"].nunique() == 3
    sums = parts.groupby(["method", "metric"])["n_conditions"].sum()
    pd.testing.assert_series_equal(sums.sort_index(), whole.sort_index(), check_dtype=False)
    seen = results.strata("n_seen", n_boot=5)
    assert set(seen["stratum"]) == {"n_seen 0"}
    unknown = results.strata("feature_distance", n_boot=5)
    assert set(unknown["stratum"]) == {"unknown"}
    effects = results.frame().groupby("condition")["effect"].first().sort_values()
    strongest = parts[parts["stratum"].str.endswith(f"to {effects.iloc[-1]:.3g}")]
    assert (strongest["n_conditions"] == 4).all()
    with pytest.raises(ValueError, match="by='size' is not known"):
        results.strata("size")
    with pytest.raises(ValueError, match="n=0"):
        results.strata("effect", n=0)


def _often_faulty(setting):
    if not FAULTS:
        return NoChange(profile=setting.profile)
    FAULTS.pop()
    return _faulty(setting)


FAULTS: list[int] = []


def test_what_failed_is_tried_again(tmp_path):
    method = Method(name="shaky", make=_often_faulty)
    FAULTS[:] = [1]
    small = study(methods=(method,), max_folds=1)
    assert run(small, tmp_path).status().set_index("method").loc["shaky", "status"] == "failed"
    seen, tell = told()
    assert run(small, tmp_path, progress=tell).status()["status"].eq("ok").all()
    assert seen == [("shaky", 0)]


def test_conditions_of_few_cells_are_scored_where_they_can_be(tmp_path):
    found = run(study(tasks=(replace(TASK, max_cells=4),), max_folds=1), tmp_path)
    frame = found.frame()
    again = frame[frame["method"] == "replicate"]  # of two cells against two
    assert "energy" in set(again["metric"])
    assert "correlation_agreement" not in set(again["metric"])


def _effects():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 30))
    values[7] = values[2]  # two conditions with equal effects
    obs = pd.DataFrame({"perturbation": [f"p{i}" for i in range(12)]})
    obs.index = [f"row{i}" for i in range(12)]
    return AnnData(values, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(30)]))


class Nearest(ContextMean):
    """Return the one visible effect that equals a held-out one."""

    def _change(self, request):
        return self.deltas[next(c for c in self.deltas if str(c) in ("p2", "p7"))][()]


def _nearest(setting):
    return Nearest("all", profile=setting.profile)


def test_equal_effects_of_two_conditions_are_no_leak(tmp_path):
    task = Task(name="effects", load=_effects, kind="unseen_perturbation", values="effects",
                fold_options=(SplitOptions(held_out=["p7"]),))  # fmt: skip
    method = Method(name="nearest", make=_nearest, values=("effects",))
    found = run(Study(tasks=(task,), methods=(method,), seeds=(0,)), tmp_path)
    assert (found.status()["status"] == "ok").all()
    assert found.frame().set_index("metric").loc["nmse", "value"] == pytest.approx(0, abs=1e-9)


RUNNING = """
import sys, time
from scvi_perturb.benchmark import runner
runner._LOOK_EVERY = 0.1
if __name__ == "__main__":
    import multiprocessing, os
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=runner._watch, args=(os.getpid(),))
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="processes are looked up by signal 0")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "running.py"
    script.write_text(RUNNING, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while _is_alive(child) and time.monotonic() < until:
        time.sleep(0.1)
    outlived = _is_alive(child)
    if outlived:
        os.kill(child, signal.SIGKILL)
    assert not outlived


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has waited for is not alive either.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="ascii").split(") ")[1][0] != "Z"
