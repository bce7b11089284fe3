"""Base classes of predictors of a mean change and of cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import UNS_KEY, NotTrainedError, SchemaError
from scvi_perturb._version import __version__
from scvi_perturb.data.condition import ScreenKeys, default_keys
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.predictors.profiles import PROFILES, Profile, TrainingProfiles
from scvi_perturb.predictors.request import (
    ControlCells,
    context_labels,
    read_counts,
    read_request,
    request_frame,
    seen_cells,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.request import Context, RequestRow
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.predictors.request import Conditions


T = TypeVar("T")

#: Units of what predictors return.
UNITS: Final = "log1p(counts per 10,000)"
#: Units of what they return from `profile="effects"`.
EFFECT_UNITS: Final = "effects as given"


def learned(value: T | None, predictor: object) -> T:
    """Return what `fit` learned.

    Raises `NotTrainedError`: Before `fit`.
    """
    if value is None:
        msg = f"{type(predictor).__name__} has not seen data; call `fit(adata, split)` first."
        raise NotTrainedError(msg)
    return value


def provenance(model: str, units: str) -> dict[str, object]:
    """Return what every result says about its origin."""
    return {"model": model, "version": __version__, "units": units}


@checked
class MeanPredictor:
    """A predictor of the mean: the control of the context, plus a change that a subclass knows.

    Parameters
    ----------
    profile
        What the mean of a population is: "pseudobulk", `log1p` of its summed counts per ten
        thousand; "cell_mean", the mean over cells of their `log1p` of counts per ten thousand; or
        "effects", for data whose rows are changes from control already (log fold changes,
        signatures, z-scores): they are averaged as they are, control is zero and need not be
        there, and `X` and `layers["lfc"]` are both the predicted change, in the units given.
    """

    name: ClassVar[str]
    #: Whether `fit_profiles` learns anew from other profiles, and not from elsewhere.
    can_refit: ClassVar[bool] = True
    #: Whether the sampling variances of profiles are needed.
    needs_variances: bool = False

    def __init__(self, *, profile: Profile = "pseudobulk") -> None:
        check_choice("profile", profile, PROFILES)
        self.profile: Profile = profile
        self._profiles: TrainingProfiles | None = None
        #: Change from control that was seen in training, by condition, then context.
        self.deltas: dict[Condition, dict[Context, NDArray[np.float64]]] = {}

    @property
    def profiles(self) -> TrainingProfiles:
        """What was learned.

        Raises
        ------
        NotTrainedError
            Before `fit`.
        """
        return learned(self._profiles, self)

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Learn the profile of each training condition in each context.

        Parameters
        ----------
        adata
            A screen with raw counts, or with changes if `profile` is "effects"; in memory or
            backed.
        split
            Its training and validation cells are seen, and nothing else of it is read; None takes
            all.
        keys
            Where the screen holds conditions, contexts, and counts or changes; None takes what
            `pp.harmonize` recorded or writes.

        Raises
        ------
        SchemaError
            If a column or layer is absent, counts are not raw or changes not finite, there is no
            control, or features are needed and were not given.
        """
        profiles = TrainingProfiles.from_screen(
            adata,
            split,
            keys=keys or default_keys(adata),
            kind=self.profile,
            with_variances=self.needs_variances,
        )
        return self.fit_profiles(profiles)

    def fit_profiles(self, profiles: TrainingProfiles) -> Self:
        """Learn from profiles that were summed up before; else as `fit`."""
        if profiles.kind != self.profile:
            msg = f"These are {profiles.kind!r} profiles; {self.name} learns from {self.profile!r}."
            raise SchemaError(msg)
        self._profiles = profiles
        self._learn()
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean of each condition.

        Parameters
        ----------
        conditions
            A list of names ("A", "A+B"), or a table with the columns `perturbation`, `dose`,
            `time` and the context's, as far as the screen has them. A context that is not given
            is the reference's, or all contexts together.
        reference
            Control cells (raw counts) to start from; None takes the training controls of the
            same context.

        Returns
        -------
        AnnData with one row a condition: `X` log-normalised means `(n_conditions, n_genes)`
        float32, `layers["lfc"]` the change from control (natural log, same units), `obs` the
        condition and context.

        Raises
        ------
        UnknownPerturbationError
            If nothing is known about a perturbation.
        SchemaError
            If the request or the reference does not fit what was learned.
        """
        requests, given = read_request(conditions, reference, self.profiles)
        return self._to_anndata(requests, given, self.changes(requests, given))

    def changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None = None
    ) -> NDArray[np.float64]:
        """Return the predicted change from control of each request, `(n_requests, n_genes)`.

        `given` are control cells of the user's, where there are.
        """
        made = np.zeros((len(requests), len(self.profiles.var_names)))
        treated = [i for i, one in enumerate(requests) if not one.condition.is_control]
        if treated:
            made[treated] = self._changes([requests[i] for i in treated], given)
        return made

    def _to_anndata(
        self,
        requests: Sequence[RequestRow],
        given: ControlCells | None,
        changes: NDArray[np.float64],
    ) -> AnnData:
        """Add changes `(n_requests, n_genes)` to the controls that requests start from."""
        profiles = self.profiles
        base = self.controls(requests, given)
        made = AnnData(
            X=(base + changes).astype(np.float32),
            obs=request_frame(requests, profiles.keys),
            var=pd.DataFrame(index=profiles.var_names),
            layers={"lfc": changes.astype(np.float32)},
        )
        units = EFFECT_UNITS if self.profile == "effects" else UNITS
        made.uns[UNS_KEY] = provenance(self.name, units) | {"profile": self.profile}
        return made

    def controls(
        self, requests: Sequence[RequestRow], given: ControlCells | None = None
    ) -> NDArray[np.float64]:
        """Return the control profile that each request starts from, `(n_requests, n_genes)`."""
        contexts = dict.fromkeys(request.context for request in requests)
        known = {context: self._control(context, given) for context in contexts}
        return np.stack([known[request.context] for request in requests])

    def _control(self, context: Context, given: ControlCells | None) -> NDArray[np.float64]:
        if given is None:
            return self.profiles.control_profile(context)
        return given.control(context, self.profiles)[2]

    def _learn(self) -> None:
        """Learn from `profiles`, as the last step of `fit`; subclasses add to it."""
        self.deltas = self.profiles.deltas

    def _changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> NDArray[np.float64]:
        """Return the changes of requests of which none is a control, `(n_requests, n_genes)`."""
        del given
        return np.stack([self._change(request) for request in requests])

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        """Return the change of one request; a subclass writes this or `_changes`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SourceCells:
    """The cells that one row of an answer starts from.

    `counts`: Raw counts of these cells, `(n, n_genes)`. `names`: Of the cells, `(n,)`.
    `n_controls`: Cells to draw when the user gives no number: one for each control cell. `mean`:
    Predicted profile, `(n_genes,)`. `change`: Predicted change from control, `(n_genes,)`.
    """

    counts: Any
    names: pd.Index
    n_controls: int
    mean: NDArray[np.float32]
    change: NDArray[np.float32]


@checked
class CellSource(ABC):
    """Draws cells from a population that a subclass finds, and says where each came from."""

    name: ClassVar[str]

    def sample(
        self,
        conditions: Conditions,
        *,
        reference: AnnData | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return cells.

        Parameters
        ----------
        conditions, reference
            As in `predict`.
        n_samples
            Cells a condition: all cells of its population as often as whole rounds fit, and a
            random choice of them for the rest. None returns one for each control cell.
        seed
            Seed of the draw; None draws anew each time.

        Returns
        -------
        AnnData: `X` the cells `(n, n_genes)`, in the units that `uns` names; `obs` the condition
        and context, `reference_cell`, the cell that each was made from, and `draw`, the number of
        the draw within its condition.

        Raises
        ------
        UnknownPerturbationError, SchemaError
            As `predict`.
        """
        rng = np.random.default_rng(seed)
        answer, populations = self._sources(conditions, reference)
        parts, rows = [], []
        for i, population in enumerate(populations):
            drawn = _drawn(len(population.names), n_samples or population.n_controls, rng)
            parts.append(self._cells(population, drawn, rng))
            obs = answer.obs.iloc[np.full(len(drawn), i)].reset_index(drop=True)
            obs["reference_cell"] = population.names[drawn].to_numpy()
            obs["draw"] = np.arange(len(drawn))
            rows.append(obs)
        obs = pd.concat(rows, ignore_index=True)
        obs.index = obs.index.astype(str)
        stacked = (
            sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
        )
        made = AnnData(X=stacked, obs=obs, var=answer.var)
        made.uns[UNS_KEY] = self._provenance() | {"seed": "none" if seed is None else seed}
        return made

    @property
    @abstractmethod
    def _about(self) -> tuple[str, str, Profile]:
        """Name of the model, units of its cells, and kind of its mean."""

    def _provenance(self) -> dict[str, object]:
        model, units, profile = self._about
        return provenance(model, units) | {"profile": profile}

    @abstractmethod
    def _sources(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, Iterable[SourceCells]]:
        """Return the answer of `predict` and the population of each of its rows."""

    @abstractmethod
    def _cells(
        self, population: SourceCells, drawn: NDArray[np.intp], rng: np.random.Generator
    ) -> Any:  # noqa: ANN401
        """Return the cells made from those at `drawn`, `(n_drawn, n_genes)`, an array or CSR."""


def _drawn(n_cells: int, n_samples: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return places of cells, each used as often as any other, as near as can be."""
    # as many as there are come in order: nothing is random where nothing has to be
    if n_samples == n_cells:
        return np.arange(n_cells)
    rounds = [rng.permutation(n_cells) for _ in range(-(-n_samples // n_cells))]
    return np.concatenate(rounds)[:n_samples]


@checked
class FromControls(CellSource):
    """Fits a mean and keeps the training control cells.

    Parameters
    ----------
    mean
        Predictor of the change.
    """

    def __init__(self, mean: MeanPredictor) -> None:
        no_effects(mean.profile, type(self).__name__)
        self.mean = mean
        self._controls: ControlCells | None = None

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Fit the mean and keep the training control cells; as `MeanPredictor.fit`."""
        self.mean.fit(adata, split, keys=keys)
        self._controls = training_controls(adata, split, self.mean.profiles)
        return self

    def _held(self) -> ControlCells:
        return learned(self._controls, self)

    def _sources(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, Iterator[SourceCells]]:
        held = self._held()
        answer = self.mean.predict(conditions, reference=reference)
        profiles = self.mean.profiles
        if reference is not None:
            held = ControlCells.read(reference, profiles)
        asked = context_labels(answer.obs, profiles.keys.context)
        rows = [held.rows(context) for context in asked]
        return answer, (
            SourceCells(
                held.counts[row],
                held.names[row],
                n_controls=len(row),
                mean=np.array(answer.X[i]),
                change=np.array(answer.layers["lfc"][i]),
            )
            for i, row in enumerate(rows)
        )


def training_controls(
    adata: AnnData, split: Split | None, profiles: TrainingProfiles
) -> ControlCells:
    """Return the control cells that may be seen, in memory."""
    seen = seen_cells(adata, split)
    codes, _ = encode_obs(adata.obs.iloc[seen], profiles.keys)
    controls = seen[codes == 0]
    obs = adata.obs.iloc[controls]
    return ControlCells(
        read_counts(adata, profiles.keys.layer, controls),
        context_labels(obs, profiles.keys.context),
        obs.index,
    )


def no_effects(profile: str, who: str) -> None:
    """Raise unless a profile is one of cells.

    Raises `SchemaError`: If it is "effects".
    """
    if profile == "effects":
        msg = (
            f'{who} predicts cells, but profile="effects" is for data that have no cells. Use '
            'profile="pseudobulk" or "cell_mean" and raw counts.'
        )
        raise SchemaError(msg)
