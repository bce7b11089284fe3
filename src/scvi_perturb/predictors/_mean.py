"""What predictors of a mean share: learn profiles, read requests, add a change to a control."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import NotTrainedError, SchemaError, check_choice
from scvi_perturb._version import __version__
from scvi_perturb.data._keys import ConditionKeys, default_keys
from scvi_perturb.predictors._profiles import PROFILES, Profile, TrainingProfiles
from scvi_perturb.predictors._reference import read_request
from scvi_perturb.predictors._requests import Request, request_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.data._splits import Split
    from scvi_perturb.predictors._protocol import Conditions
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Context

__all__ = ["EFFECT_UNITS", "UNITS", "MeanPredictor"]

#: Units of what predictors return.
UNITS: Final = "log1p(counts per 10,000)"
#: Units of what they return from `profile="effects"`.
EFFECT_UNITS: Final = "effects as given"


class MeanPredictor(ABC):
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
        if self._profiles is None:
            msg = f"{type(self).__name__} has not seen data; call `fit(adata, split)` first."
            raise NotTrainedError(msg)
        return self._profiles

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
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
            Columns that hold the condition; None takes those of `pp.harmonize`.
        context_keys
            Columns that hold the context of a cell.
        layer
            Where the counts or changes are; None is `X`.

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
            context_keys=[context_keys] if isinstance(context_keys, str) else context_keys,
            layer=layer,
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
        return self._answer(requests, given, self.changes(requests, given))

    def changes(
        self, requests: Sequence[Request], given: Reference | None = None
    ) -> NDArray[np.float64]:
        """Return the predicted change from control of each request, `(n_requests, n_genes)`.

        `given` are control cells of the user's, where there are.
        """
        del given
        return np.stack([self._change(request) for request in requests])

    def _answer(
        self,
        requests: Sequence[Request],
        given: Reference | None,
        changes: NDArray[np.float64],
    ) -> AnnData:
        """Add changes `(n_requests, n_genes)` to the controls that requests start from."""
        profiles = self.profiles
        base = self.controls(requests, given)
        made = AnnData(
            X=(base + changes).astype(np.float32),
            obs=request_frame(requests, profiles.keys, profiles.context_keys),
            var=pd.DataFrame(index=profiles.var_names),
            layers={"lfc": changes.astype(np.float32)},
        )
        made.uns[UNS_KEY] = {
            "model": self.name,
            "version": __version__,
            "units": EFFECT_UNITS if self.profile == "effects" else UNITS,
            "profile": self.profile,
        }
        return made

    def controls(
        self, requests: Sequence[Request], given: Reference | None = None
    ) -> NDArray[np.float64]:
        """Return the control profile that each request starts from, `(n_requests, n_genes)`."""
        contexts = dict.fromkeys(request.context for request in requests)
        known = {context: self._control(context, given) for context in contexts}
        return np.stack([known[request.context] for request in requests])

    def _control(self, context: Context, given: Reference | None) -> NDArray[np.float64]:
        if given is None:
            return self.profiles.control_profile(context)
        return given.control(context, self.profiles)[2]

    def _change(self, request: Request) -> NDArray[np.float64]:
        if request.condition.is_control:
            return np.zeros(len(self.profiles.var_names))
        return self._delta(request)

    def _learn(self) -> None:
        """Learn from `profiles`, as the last step of `fit`; subclasses add to it."""
        self.deltas = self.profiles.deltas

    @abstractmethod
    def _delta(self, request: Request) -> NDArray[np.float64]:
        """Return the predicted change from control of what is no control, `(n_genes,)`."""
