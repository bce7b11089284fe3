"""Options that are given twice, or not at all; commands that are interrupted."""

from __future__ import annotations

import pytest

from scvi_perturb.cli import _demo, main
from scvi_perturb.data import SimulatorConfig


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


@pytest.mark.parametrize("arguments", [["demo"], ["check", "x.h5ad"], ["benchmark", "x.toml"]])
def test_each_command_ends_with_130_when_interrupted(arguments, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "run_demo", interrupted)
    monkeypatch.setattr("scvi_perturb.data.reader.read_screen", interrupted)
    monkeypatch.setattr("scvi_perturb.cli._benchmark.run_benchmark", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "scvi-perturb: interrupted.\n"
