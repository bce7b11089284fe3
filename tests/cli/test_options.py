"""Options that are given twice, or not at all; commands that are interrupted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scvi_perturb.cli import _demo, main
from scvi_perturb.cli._app import OWN, _app
from scvi_perturb.data import SimulatorConfig
from tests._source import ROOT

COMMAND = re.compile(r"^ *(scvi-perturb [a-z].*?)(?: +#.*)?$", flags=re.MULTILINE)
BLOCK = re.compile(r"^```bash\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def asked(monkeypatch):
    """What `demo` was asked to do, in place of doing it."""
    found = []
    monkeypatch.setattr(_demo, "run_demo", lambda options, _: found.append(options))
    return found


def test_of_an_option_given_twice_the_last_holds_or_all_values(asked):
    arguments = ["--seed", "1", "--held-out", "A+B", "A+C", "--seed", "2", "--held-out", "B+C"]
    assert main(["demo", *arguments]) == 0
    (options,) = asked
    assert options.seed == 2
    assert options.held_out == ("A+B", "A+C", "B+C")


def test_without_data_the_demo_simulates_a_screen(monkeypatch):
    class Simulated(Exception):
        """Raised in place of what follows."""

    def simulate(*, n_cells, n_genes, seed, config):
        assert isinstance(config, SimulatorConfig)
        raise Simulated(n_cells, n_genes, seed)

    monkeypatch.setattr(_demo, "simulate_screen", simulate)
    with pytest.raises(Simulated) as made:
        main(["demo", "--seed", "5"])
    assert made.value.args == (6000, 500, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["check", "x.h5ad"],
        ["benchmark", "x.toml"],
        ["train", "x.h5ad", "--out", "made"],
        ["predict", "made", "--conditions", "A"],
    ],
)
def test_each_command_ends_with_130_when_interrupted(arguments, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "run_demo", interrupted)
    for name in ("benchmark", "train", "predict"):
        monkeypatch.setattr(f"scvi_perturb.cli._{name}.run_{name}", interrupted)
    # Last: a module that is imported under the patch would keep it.
    monkeypatch.setattr("scvi_perturb.data.reader.read_screen", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "scvi-perturb: interrupted.\n"


def _parses(line: str) -> None:
    given = shlex.split(line)[1:]
    app = _app(given)
    _, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
    assert bound.signature.parameters


def test_commands_in_the_pages_are_understood():
    Path("train.toml").write_text('out = "model_dir"\n', encoding="utf-8")
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/how_to").glob("*.md"),
    ]
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text("utf-8"))]
    lines = [line for block in blocks for line in COMMAND.findall(block)]
    assert len(lines) > 15
    for line in lines:
        if "count screen.h5ad" not in line:  # a command that the page shows how to add
            _parses(line)


@pytest.mark.parametrize("name", OWN)
def test_help_has_two_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([name, "--help"]) == 0
    lines = COMMAND.findall(capsys.readouterr().out)
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"scvi-perturb {name}")
        _parses(line)
