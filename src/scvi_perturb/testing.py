"""The contract that every model keeps, as a test class for models of other packages.

One test file is enough::

    from scvi_perturb.testing import ModelCase, ModelContract

    class TestShiftVAE(ModelContract):
        case = ModelCase(ShiftVAE, init={"n_latent": 4}, train={"max_epochs": 2, "n_steps": 10})

Run it with `pytest -p scvi_perturb.testing`: as a plugin of pytest (9 or newer) it explains failed
assertions, and offers the fixtures `contract_screen` and `contract_features`.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

from scvi_perturb._core import NotTrainedError, SchemaError, UnknownPerturbationError
from scvi_perturb.data import SimulatorConfig, Split, perturbation_features, simulate_screen, split
from scvi_perturb.data.fields import data_hash
from scvi_perturb.features.store import PerturbationFeatures

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

    from scvi_perturb.model.base.model import PerturbationModel

__all__ = [
    "FEATURED",
    "HELD_OUT",
    "NEW_PAIR",
    "OTHER",
    "PAIR",
    "SETUP",
    "SINGLE",
    "ModelCase",
    "ModelContract",
    "controls",
    "dense",
    "fit",
    "make_features",
    "make_model",
    "make_screen",
    "make_split",
]

#: Columns of the screen.
SETUP: dict[str, Any] = {"context_keys": ["cell_type"], "batch_key": "batch"}
#: Trained on, alone and combined.
SINGLE, OTHER, PAIR = "pert_01", "pert_03", "pert_02+pert_03"
#: Never measured: a combination of the two above, and a perturbation with features.
NEW_PAIR, FEATURED = "pert_01+pert_03", "pert_06"
#: In the screen and held out of training, without features.
HELD_OUT = "pert_05"

_SCREEN = {
    "n_perturbations": 5,
    "n_unseen": 1,
    "n_combinations": 4,
    "n_contexts": 2,
    "n_batches": 2,
    "library_size": 400.0,
    "control_fraction": 0.3,
}
_CPU = {"accelerator": "cpu", "enable_progress_bar": False}


@dataclass(frozen=True, slots=True)
class ModelCase:
    """A model, made small enough to be trained in a second.

    `model`: The class. `init`, `train`: Small arguments of the constructor and of `train`; by
    default on the CPU without progress. `stages`: Prefix of the history of each stage of training,
    in order. `selected`: Stages of which the weights of the best validation loss are kept; those
    stop early too. `accurate`: Arguments of the constructor and of `train` with which it learns
    something; None leaves out the tests of what is learned. `searched`: Arguments of `train`,
    beside the small ones, with which it chooses the length of a stage by itself; None where it
    never does. `variants`: Other arguments of the constructor, by name: other likelihoods, spaces,
    conditioning. `units`: Units of samples of the variants that do not draw counts. `likelihood`:
    The verb that says how likely cells are. `samplers`: Methods of drawing, the default first; none
    where one pass draws. `without_likelihood`: Variants that have none.
    """

    model: type[PerturbationModel]
    init: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ("representation", "generator")
    selected: tuple[str, ...] = ("representation",)
    accurate: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
    searched: Mapping[str, Any] | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    likelihood: str = "log_likelihood_bound"
    samplers: tuple[str, ...] = ("heun",)
    without_likelihood: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the class."""
        return self.model.__name__


def make_screen(*, n_cells: int = 300, n_genes: int = 30, seed: int = 0, **changes: Any) -> AnnData:  # noqa: ANN401
    """Return a small simulated screen; `changes` are of its `SimulatorConfig`."""
    config = SimulatorConfig(**{**_SCREEN, **changes})
    return simulate_screen(n_cells=n_cells, n_genes=n_genes, seed=seed, config=config)


def make_split(adata: AnnData) -> Split:
    """Return a split that holds out every cell with `HELD_OUT`."""
    made = split(adata, "unseen_perturbation", seed=1)
    found = {name for row in made.held_out for name in row["targets"]}
    if found != {HELD_OUT}:
        msg = f"The split holds out {sorted(found)}, and not {HELD_OUT!r}; use `make_screen()`."
        raise ValueError(msg)
    return made


def moved_split(made: Split, adata: AnnData) -> Split:
    """Return a split of the same cells, for data that differ in what it does not look at."""
    return replace(made, data_hash=data_hash(adata, made.keys))


def make_features(adata: AnnData) -> PerturbationFeatures:
    """Return features of all perturbations but `HELD_OUT` and one more."""
    table = perturbation_features(adata)["embedding"]
    return PerturbationFeatures({"embedding": table.drop(index=[HELD_OUT, "pert_04"])})


def make_model(
    case: ModelCase,
    adata: AnnData,
    *,
    setup: Mapping[str, Any] | None = None,
    **init: Any,  # noqa: ANN401
) -> PerturbationModel:
    """Register the screen and return an untrained model; `init` goes before `case.init`."""
    case.model.setup_anndata(adata, **(SETUP if setup is None else setup))
    return case.model(adata, **{**case.init, **init})


def fit(case: ModelCase, model: PerturbationModel, **train: Any) -> Any:  # noqa: ANN401
    """Train a model with the small arguments, save where others are given; return it."""
    model.train(**{**_CPU, **case.train, **train})
    return model


def controls(adata: AnnData) -> AnnData:
    """Return the control cells, copied."""
    return adata[adata.obs["perturbation"] == "control"].copy()


def dense(matrix: Any) -> np.ndarray:  # noqa: ANN401
    """Return an array."""
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


@pytest.fixture(scope="session")
def contract_screen() -> AnnData:
    """Return the screen of the contract; to be copied, never changed."""
    return make_screen()


@pytest.fixture(scope="session")
def contract_features(contract_screen: AnnData) -> PerturbationFeatures:
    """Return features of the perturbations of `contract_screen`."""
    return make_features(contract_screen)


class ModelContract:
    """What every model keeps; inherit from it and set `case`."""

    case: ClassVar[ModelCase]

    @pytest.fixture(scope="class")
    @classmethod
    def simulated(cls) -> AnnData:
        """Return the screen; to be copied, never changed."""
        return make_screen()

    @pytest.fixture(scope="class")
    @classmethod
    def trained(
        cls, simulated: AnnData, tmp_path_factory: pytest.TempPathFactory
    ) -> PerturbationModel:
        """Return a model trained on the screen, one perturbation held out."""
        adata = simulated.copy()
        with contextlib.chdir(tmp_path_factory.mktemp("training")):
            model = make_model(cls.case, adata, features=make_features(adata))
            return fit(cls.case, model, split=make_split(adata))

    # Registration -------------------------------------------------------------------------

    def test_data_stay_as_they_were(self, simulated: AnnData) -> None:
        """Only documented keys are added."""
        adata = simulated.copy()
        make_model(self.case, adata)
        np.testing.assert_array_equal(dense(adata.X), dense(simulated.X))
        added = set(adata.obs) - set(simulated.obs)
        assert added == {"_scvi_condition", "_scvi_context", "_scvi_batch"}
        assert set(adata.uns) - set(simulated.uns) == {"_scvi_uuid", "_scvi_manager_uuid"}
        assert set(adata.layers) == set(simulated.layers)

    def test_other_values_than_counts_are_refused(self, simulated: AnnData) -> None:
        """Log-normalised values are no counts."""
        adata = simulated.copy()
        adata.X = adata.X.log1p()
        with pytest.raises(SchemaError, match="log-normalised"):
            self.case.model.setup_anndata(adata, **SETUP)

    def test_constructor_names_every_argument(self) -> None:
        """Scvi-tools loses what goes through `**kwargs` when a model is saved."""
        parameters = inspect.signature(self.case.model.__init__).parameters.values()
        assert not [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
        assert {"adata", "features", "registry"} <= {p.name for p in parameters}

    # Training -----------------------------------------------------------------------------

    def test_history_has_training_and_validation_losses(self, trained: PerturbationModel) -> None:
        """Every stage logs both, finite."""
        for stage in self.case.stages:
            for part in ("train", "validation"):
                assert np.isfinite(trained.history_[f"{stage}_{part}_loss"].to_numpy()).all()

    def test_trained_model_evaluates(self, trained: PerturbationModel) -> None:
        """Dropout is off after training."""
        assert trained.is_trained_
        assert not trained.module.training

    def test_held_out_cells_do_not_reach_the_weights(self, simulated: AnnData) -> None:
        """Spoilt counts of held-out cells leave the weights as they are."""
        made, spoilt = make_split(simulated), simulated.copy()
        counts = spoilt.X.toarray()
        counts[made.test] = np.random.default_rng(0).poisson(20, counts[made.test].shape)
        spoilt.X = sparse.csr_matrix(counts)
        states = []
        for adata in (simulated.copy(), spoilt):
            own = moved_split(made, adata)
            model = fit(self.case, make_model(self.case, adata), split=own)
            states.append(model.module.state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

    def test_nothing_is_told_before_training(self, simulated: AnnData) -> None:
        """Verbs of an untrained model raise."""
        model = make_model(self.case, simulated.copy())
        for verb in (model.sample, model.predict):
            with pytest.raises(NotTrainedError, match="has not been trained"):
                verb([SINGLE])
        with pytest.raises(NotTrainedError, match="has not been trained"):
            model.get_latent_representation()

    # Samples and effects ------------------------------------------------------------------

    def test_samples_are_integer_counts(
        self, trained: PerturbationModel, simulated: AnnData
    ) -> None:
        """Measured and unmeasured conditions: counts, condition columns, genes in order."""
        asked = [SINGLE, PAIR, "control", NEW_PAIR, FEATURED]
        cells = trained.sample(asked, n_samples=20)
        assert cells.shape == (100, simulated.n_vars)
        assert cells.var_names.tolist() == simulated.var_names.tolist()
        assert isinstance(cells.X, sparse.csr_matrix)
        assert cells.X.nnz > 0
        assert (cells.X.data == np.rint(cells.X.data)).all()
        assert (cells.X.data > 0).all()
        assert cells.obs["perturbation"].tolist() == np.repeat(asked, 20).tolist()
        start = simulated.obs.loc[cells.obs["reference_cell"]]
        assert set(start["perturbation"]) == {"control"}
        assert set(start.index) <= set(simulated.obs_names[trained.train_indices])

    def test_results_say_what_they_are(self, trained: PerturbationModel) -> None:
        """`uns` records model, units, seed and training."""
        told = trained.sample([SINGLE], n_samples=3, seed=4).uns["scvi_perturb"]
        assert (told["model"], told["units"], told["seed"]) == (self.case.name, "counts", 4)
        assert told["trained_on"] == trained.trained_on_

    def test_seeds(self, trained: PerturbationModel) -> None:
        """The same seed draws the same cells, another seed others."""
        one, two, other = (
            dense(trained.sample([SINGLE, NEW_PAIR], n_samples=20, seed=seed).X)
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, other)

    def test_global_random_state_is_left_alone(self, trained: PerturbationModel) -> None:
        """Drawing reads and changes no global state."""
        torch.manual_seed(3)
        first = torch.rand(1)
        torch.manual_seed(3)
        trained.sample([SINGLE], n_samples=5, seed=0)
        assert torch.equal(torch.rand(1), first)

    def test_order_of_components_is_irrelevant(self, trained: PerturbationModel) -> None:
        """A combination is a set of perturbations."""
        first, second = PAIR.split("+")
        one, two = (trained.sample([name], n_samples=20) for name in (PAIR, f"{second}+{first}"))
        np.testing.assert_array_equal(dense(one.X), dense(two.X))
        assert one.obs.equals(two.obs)

    def test_effects_are_one_row_a_condition(
        self, trained: PerturbationModel, simulated: AnnData
    ) -> None:
        """Finite, within their interval, with novelty in [0, 1]."""
        asked = [SINGLE, NEW_PAIR, FEATURED]
        effects = trained.predict(asked, n_samples=50)
        assert effects.shape == (3, simulated.n_vars)
        layers = {key: effects.layers[key] for key in ("lfc", "lower", "upper", "std")}
        assert all(np.isfinite(values).all() for values in (effects.X, *layers.values()))
        assert (layers["lower"] <= layers["lfc"]).all()
        assert (layers["lfc"] <= layers["upper"]).all()
        np.testing.assert_allclose(np.expm1(effects.X).sum(axis=1), 1e4, rtol=0.02)
        assert effects.obs["novelty"].between(0, 1).all()
        known = ("seen perturbation", "new combination", "featured perturbation")
        assert [str(regime).split(",")[0] for regime in effects.obs["regime"]] == [*known]

    def test_unknown_perturbations_are_refused(self, trained: PerturbationModel) -> None:
        """A name never seen, and one held out without features."""
        for name in ("pert_11", HELD_OUT, f"{SINGLE}+{HELD_OUT}"):
            with pytest.raises(UnknownPerturbationError):
                trained.sample([name])

    def test_control_has_no_effect(self, trained: PerturbationModel) -> None:
        """Control in, no effect out: within five standard errors of two draws of controls."""
        effects = trained.predict(["control"], n_samples=None)
        error = np.maximum(effects.layers["std"], 0.02)
        assert np.sqrt(np.mean((effects.layers["lfc"] / error) ** 2)) < 5

    def test_new_reference_cells_need_no_training(
        self, trained: PerturbationModel, simulated: AnnData
    ) -> None:
        """Controls of a cell type and batch never seen, genes in another order."""
        reference = controls(simulated)[:7].copy()
        reference.obs["cell_type"], reference.obs["batch"] = "never seen", "tomorrow's"
        cells = trained.sample([SINGLE, NEW_PAIR], reference=reference, n_samples=None)
        assert cells.n_obs == 14
        assert cells.obs["reference_cell"].tolist() == reference.obs_names.tolist() * 2
        swapped = trained.sample(
            [SINGLE, NEW_PAIR], reference=reference[:, ::-1].copy(), n_samples=None
        )
        np.testing.assert_array_equal(dense(cells.X), dense(swapped.X))
        with pytest.raises(SchemaError, match="missing"):
            trained.sample([SINGLE], reference=reference[:, :-1].copy())

    def test_latents_follow_the_order_of_indices(
        self, trained: PerturbationModel, simulated: AnnData, tmp_path: Path
    ) -> None:
        """In memory and on disk."""
        rows = [290, 7, 3, 5, 7]
        every = trained.get_latent_representation()
        np.testing.assert_allclose(
            trained.get_latent_representation(indices=rows), every[rows], atol=1e-5
        )
        adata = simulated.copy()
        del adata.uns["truth"]
        adata.write_h5ad(tmp_path / "screen.h5ad")
        backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
        found = trained.get_latent_representation(backed, indices=rows)
        np.testing.assert_allclose(found, every[rows], atol=1e-5)

    def test_likelihoods_are_finite(self, trained: PerturbationModel) -> None:
        """One number a cell."""
        verb = getattr(trained, self.case.likelihood)
        known = np.flatnonzero(~trained.adata.obs["perturbation"].str.contains(HELD_OUT))[:9]
        values = verb(indices=known, n_samples=8)
        assert values.shape == (9,)
        assert np.isfinite(values).all()

    # Save and load ------------------------------------------------------------------------

    def test_loaded_model_is_the_same(
        self, trained: PerturbationModel, simulated: AnnData, tmp_path: Path
    ) -> None:
        """With data and without: equal weights, samples and effects."""
        trained.save(tmp_path / "model")
        asked, reference = [SINGLE, NEW_PAIR, FEATURED], controls(simulated)
        for adata in (trained.adata, False):
            loaded = self.case.model.load(tmp_path / "model", adata)
            assert repr(loaded.module) == repr(trained.module)
            state = loaded.module.state_dict()
            assert all(torch.equal(state[k], v) for k, v in trained.module.state_dict().items())
            assert loaded.trained_on_ == trained.trained_on_
            options = {} if loaded.adata is not None else {"reference": reference}
            one, two = (m.sample(asked, n_samples=12, **options) for m in (loaded, trained))
            np.testing.assert_array_equal(dense(one.X), dense(two.X))
            one, two = (m.predict(asked, n_samples=12, **options) for m in (loaded, trained))
            np.testing.assert_allclose(one.layers["lfc"], two.layers["lfc"], atol=1e-5)

    def test_variants_can_be_trained_and_loaded(self, simulated: AnnData, tmp_path: Path) -> None:
        """Every argument comes back."""
        for name, init in self.case.variants.items():
            adata = simulated.copy()
            model = fit(self.case, make_model(self.case, adata, **init), max_epochs=1)
            model.save(tmp_path / name)
            loaded = self.case.model.load(tmp_path / name, adata)
            saved = {k: v for part in loaded.init_params_.values() for k, v in part.items()}
            assert {k: saved[k] for k in init} == dict(init)
            one, two = (m.sample([NEW_PAIR], n_samples=4) for m in (loaded, model))
            np.testing.assert_array_equal(dense(one.X), dense(two.X))
