"""What cannot be done is said in one line, with the option that helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scvi_perturb import __version__
from scvi_perturb.cli import main


def _fails(arguments: list[str], capsys) -> str:
    """Return the one line that is said."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("scvi-perturb: ")
    return err


def test_a_file_that_is_not_there(capsys):
    assert "There is no file absent.h5ad" in _fails(["demo", "--data", "absent.h5ad"], capsys)


def test_a_file_of_another_kind(capsys):
    Path("text.h5ad").write_text("words", encoding="utf-8")
    assert "could not be read as .h5ad" in _fails(["check", "text.h5ad"], capsys)


def test_perturbations_that_are_not_recognised(foreign_file, capsys):
    said = _fails(["check", str(foreign_file)], capsys)
    assert "--perturbation-key COLUMN" in said
    assert "guide, tissue, lane" in said


def test_a_control_that_is_not_recognised(foreign_file, capsys):
    said = _fails(["check", str(foreign_file), "--perturbation-key", "guide"], capsys)
    assert "--control LABEL" in said
    assert "wt" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--control", "none_such"],
            "none_such: no cell has this label; there are control,",
        ),
        (["--perturbation-key", "gene"], "--perturbation-key gene: obs has no such column"),
        (["--context-keys", "organ"], "--context-keys organ: obs has no such column"),
        (["--layer", "umis"], "--layer umis: found layers none"),
        (["--library-key", "cell_type"], "expected a number above 0"),
    ],
)
def test_options_that_do_not_fit_the_file(combinations_file, arguments, expected, capsys):
    assert expected in _fails(["check", str(combinations_file), *arguments], capsys)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pert_01", "a single perturbation would then be unknown"),
        ("pert_01+pert_77", "neither a combination nor a context"),
    ],
)
def test_what_cannot_be_held_out(combinations_file, name, expected, capsys):
    assert expected in _fails(
        ["demo", "--data", str(combinations_file), "--held-out", name], capsys
    )


def test_no_counts(foreign, capsys):
    del foreign.layers["umis"]
    foreign.X = np.log1p(foreign.X.toarray())
    foreign.write_h5ad("logs.h5ad")
    given = ["--perturbation-key", "guide", "--control", "wt"]
    said = _fails(["check", "logs.h5ad", *given], capsys)
    assert "--layer NAME" in said
    assert "log-normalised" in said


def test_a_folder_that_is_a_file(capsys):
    Path("taken").write_text("", encoding="utf-8")
    assert "name a folder" in _fails(["demo", "--out", "taken"], capsys)


@pytest.mark.parametrize("arguments", [["demo", "--n-steps", "0"], ["demo", "--seed", "x"], []])
def test_arguments_that_make_no_sense(arguments, capsys):
    assert "--help" in _fails(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["deno"], 'Did you mean "demo"?'),
        (["demo", "--max-cell", "3"], "Did you mean --max-cells?"),
        (["check"], "See scvi-perturb check --help"),
    ],
)
def test_what_was_meant_is_said(arguments, expected, capsys):
    assert expected in _fails(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], f"scvi-perturb {__version__}"),
        (["--help"], "look a screen over"),
        (["demo", "--help"], "a larger screen is cut down to so many genes. [default: 5000]"),
        (["check", "--help"], "--context-keys"),
        (["benchmark", "--help"], "[choices: processes, ray]"),
    ],
)
def test_help(arguments, expected, capsys):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert expected in " ".join(printed.replace("│", " ").split()).lower()
