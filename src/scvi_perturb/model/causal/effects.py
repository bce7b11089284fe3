"""Effects of perturbations of `CausalPerturbVAE`, with their error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.stats import norm

from scvi_perturb._constants import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    LIBRARY_KEY,
    TARGET_SUM,
    X_KEY,
)
from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb._random import generator
from scvi_perturb.data.matching import group_controls
from scvi_perturb.model.base.draw import Drawn, Plan, cell_obs, expected_proportions
from scvi_perturb.model.base.latents import chunks, encode_cells
from scvi_perturb.model.base.request import parse_request
from scvi_perturb.model.base.setup import check_interval
from scvi_perturb.model.causal.draw import CausalGiven, OperatorSums
from scvi_perturb.module.base import ConditionTensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

    from scvi_perturb._typing import Batch
    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.model.base.draw import Output
    from scvi_perturb.model.causal.draw import Latents
    from scvi_perturb.module.base import CountParameters
    from scvi_perturb.module.causal import GroupedAutoencoder

__all__ = [
    "USUAL",
    "CausalEffects",
    "CausalVerbs",
    "HeldOutEffects",
    "excess",
    "shares",
    "weight_covariance",
]


class CausalVerbs(CausalGiven, OperatorSums):
    """`counterfactual`, `interpolate`, `transfer`."""

    def counterfactual(
        self,
        adata: AnnData | MuData | None,
        conditions: Sequence[str] | pd.DataFrame | Mapping[str, Mapping[str, float]],
        *,
        indices: Sequence[int] | None = None,
        output: Output = "counts",
        seed: int | None = 0,
    ) -> AnnData:
        """Return each given cell as it would be under other conditions.

        Its identity, technical and basal latents stay; from the state the shift of its own
        condition is taken, as far as the cell is likely to have responded, and that of the other
        condition added. It is a statement of the model about a cell that responds, not an
        identified one about this cell.

        Parameters
        ----------
        adata
            Cells with the genes and columns of training, under any condition; None for the data of
            training.
        conditions
            Names or a table, as for :meth:`sample`, without context or batch. Or a mapping of a
            name of your own to weights of perturbations, `{"A without B": {"A": 1, "B": -1}}`.
        indices
            Cells, in the order wanted; None for all.
        output
            `"counts"`, drawn at the cell's library size; or `"mean"`, expected counts.
        seed
            Seed of the counts.

        Returns
        -------
        AnnData
            One row a cell and condition, conditions in turn; `obs`: the condition's columns, and
            `reference_cell`; latents in `obsm["X_latent"]`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For an output that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        given = self._given(adata, indices)
        asked, weight, frame = self._asked_operators(conditions)
        basal, n = self._basal(given), len(given)
        at = torch.arange(len(frame), device=self._device()).repeat_interleave(n)
        rows = asked.rows(at)
        factor = None if weight is None else weight[at]
        own = self._shifted(basal.repeat(len(frame), 1), rows, factor)
        obs = frame.loc[frame.index.repeat(n)].reset_index(drop=True)
        obs["reference_cell"] = np.tile(given.names.astype(str).to_numpy(), len(frame))
        obs.index = pd.Index([f"row{i}_cell{j}" for i in range(len(frame)) for j in range(n)])
        library = np.tile(given.library, len(frame))
        return self._decoded(own, library, rows, obs, output=output, seed=seed, weight=factor)

    def interpolate(
        self,
        start: str,
        end: str,
        *,
        n_steps: int = 5,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 200,
        output: Output = "mean",
        seed: int | None = 0,
    ) -> AnnData:
        """Return cells on the straight line between two conditions in the state.

        Parameters
        ----------
        start, end
            Names of conditions, the control among them.
        n_steps
            Points on the line, both ends included; at least 2.
        reference, n_samples
            As for :meth:`sample`.
        output, seed
            As for :meth:`counterfactual`.

        Returns
        -------
        AnnData
            One row a cell and point, points in turn; `obs["fraction"]`, 0 at the start and 1 at
            the end.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For fewer than two points, or an output that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        if n_steps < 2:
            msg = f"n_steps={n_steps}; expected at least 2, the start and the end."
            raise ValueError(msg)
        request, cells = self._ask([start, end], reference)
        one = request.__class__(request.conditions[:1], {}, None)
        plan = Plan.make(one, cells, n_samples, seed)
        used, place = np.unique(plan.reference, return_inverse=True)
        latents = self._latents_of(cells, used)
        mean = latents.mean[torch.from_numpy(place)]
        both = self._condition_tensors(request.conditions)
        ends = [
            self._shifted(mean, both.rows(torch.full((len(plan),), i, device=self._device())), None)
            for i in range(2)
        ]
        fractions = np.linspace(0.0, 1.0, n_steps)
        points = torch.cat([torch.lerp(ends[0], ends[1], float(f)) for f in fractions])
        obs = cell_obs(plan, one, cells, self._screen).drop(columns="draw")
        every = pd.concat([obs.assign(fraction=f, start=start, end=end) for f in fractions])
        every.index = pd.Index([f"{name}_{i}" for i in range(n_steps) for name in obs.index])
        every = every.drop(columns=self._screen.keys.perturbation)
        # Of the genes that both edit, as much is corrected as each has of the point.
        component, dose, mask = (x.reshape(1, -1) for x in both[:3])
        joined = ConditionTensors(component, dose, mask, both.time[:1])
        rows = joined.rows(torch.zeros(len(points), dtype=torch.long, device=self._device()))
        at = torch.from_numpy(fractions).to(points.dtype)
        weight = torch.stack([1 - at, at], dim=1).repeat_interleave(both.mask.shape[1], dim=1)
        weight = weight.repeat_interleave(len(plan), dim=0).to(self._device())
        library = np.tile(cells.library[plan.reference], n_steps)
        return self._decoded(points, library, rows, every, output=output, seed=seed, weight=weight)

    def transfer(
        self,
        reference: AnnData | MuData,
        conditions: Sequence[str] | pd.DataFrame,
        *,
        n_samples: int = 500,
        output: Output = "counts",
        seed: int | None = 0,
    ) -> AnnData:
        """Draw the population that a few reference cells, or a single one, stand for.

        Unlike :meth:`sample`, which keeps the identity of each reference cell, the mean identity
        of the reference is drawn towards that of the training contexts, as far as so few cells
        leave it open, and cells vary around it as cells of one context do.

        Parameters
        ----------
        reference
            Control cells of one cell type, donor or sample, one or many; never trained on.
        conditions
            Names or a table, as for :meth:`sample`.
        n_samples
            Cells drawn for each condition.
        output, seed
            As for :meth:`counterfactual`.

        Returns
        -------
        AnnData
            One row a cell, as from :meth:`sample`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For an output that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        request, cells = self._ask(conditions, reference)
        plan = Plan.make(request, cells, n_samples, seed)
        random = generator(seed, self._device())
        latents = self._latents_of(cells, np.arange(len(cells)))
        own = self._groups(latents.draw(plan.reference, random))
        identity = self._population(latents, plan, random)
        rows = self._condition_tensors(request.conditions).rows(
            torch.from_numpy(plan.row).to(self._device())
        )
        with torch.inference_mode():
            basal = torch.randn(own.state.shape, generator=random, device=random.device)
            state = basal + self._response(rows, identity, random)
        latent = own._replace(identity=identity).with_state(state).cpu()
        obs = cell_obs(plan, request, cells, self._screen)
        library = cells.library[plan.reference]
        return self._decoded(latent, library, rows, obs, output=output, seed=seed)

    def _population(self, latents: Latents, plan: Plan, random: torch.Generator) -> torch.Tensor:
        """Draw identities of the population of the reference cells of each row."""
        spread, found = self.identity_spread_, []
        mean = self._groups(latents.mean).identity.double().numpy()
        for row in np.unique(plan.row):
            pool = np.unique(plan.reference[plan.row == row])
            noise = spread["within"] / len(pool)
            gain = spread["between"] @ np.linalg.inv(spread["between"] + noise)
            centre = spread["centre"] + gain @ (mean[pool].mean(axis=0) - spread["centre"])
            n = int((plan.row == row).sum())
            unit = torch.randn(n, len(centre), generator=random, device=random.device).cpu()
            values, vectors = np.linalg.eigh(spread["within"])
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            found.append(centre + unit.double().numpy() @ root.T)
        return torch.from_numpy(np.concatenate(found)).float().to(random.device)

    @torch.inference_mode()
    def _shifted(
        self, latent: torch.Tensor, conditions: ConditionTensors, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Return latents whose state is moved by conditions, one a cell; on the CPU."""
        own = self._groups(latent.to(self._device()))
        state = own.state + self._network.shift(conditions, own.identity, weight)
        return own.with_state(state).cpu()

    def _asked_operators(
        self, conditions: Sequence[str] | pd.DataFrame | Mapping[str, Mapping[str, float]]
    ) -> tuple[ConditionTensors, torch.Tensor | None, pd.DataFrame]:
        """Return conditions or sums of operators, their weights, and how they are called."""
        if isinstance(conditions, Mapping):
            return self._sums(conditions)
        request = parse_request(conditions, self._screen)
        if request.context or request.batch is not None:
            msg = "The cells say their context and batch; ask with conditions alone."
            raise SchemaError(msg)
        frame = self._screen.table.frame(request.conditions)
        names = {"perturbation": self._screen.keys.perturbation} | {
            name: column
            for name, column in (
                ("dose", self._screen.keys.dose),
                ("time", self._screen.keys.time),
                ("perturbation_type", self._screen.keys.kind),
            )
            if column is not None
        }
        return (
            self._condition_tensors(request.conditions),
            None,
            frame[list(names)].rename(columns=names),
        )


#: Training cells that the information is summed over.
MAX_CELLS: Final = 20_000
#: Precision of the prior of a weight, whose unit is one in log expression a standard deviation.
PRIOR: Final = 1.0
#: Genes whose information is inverted at once.
BLOCK: Final = 1024
#: Controls that stand for each held-out cell; conditions looked at; cells of one, least and most.
N_CONTROLS, MAX_CONDITIONS, FEWEST, MOST = 5, 50, 5, 200
#: Squared errors over what is stated, before any is measured, and how far that may be off: on
#: simulated screens it was 2.1 to 2.9.
USUAL, SPREAD = 2.5, 1.0


@torch.inference_mode()
def weight_covariance(
    network: GroupedAutoencoder, reader: ScreenReader, train: np.ndarray, *, seed: int
) -> np.ndarray:
    """Return the covariance of each gene's weights of the state, `(n_genes, n_state, n_state)`."""
    device = network.profile.device
    random = np.random.default_rng(seed)
    used = train
    if len(train) > MAX_CELLS:
        used = np.sort(random.choice(train, MAX_CELLS, replace=False))
    cut = network.sizes[0] + network.sizes[1]
    d = network.n_latent  # the depth's place is that of the intercept
    total = torch.zeros(network.n_genes, d * d, device=device)
    for rows in chunks(len(used)):
        tensors = {k: v.to(device) for k, v in reader[used[rows]].items()}
        latent, _ = network.encode(tensors)
        conditions = network.table.rows(tensors[CONDITION_KEY])
        made = network.decode(latent, tensors[LIBRARY_KEY], None, conditions)
        latent = latent.clone()
        latent[:, cut] = 1.0
        squares = (latent[:, :, None] * latent[:, None, :]).reshape(len(latent), -1)
        total += _information(made, network.likelihood).T @ squares.float()
    total *= len(train) / len(used)
    state = slice(network.sizes[0], cut)
    prior = PRIOR * torch.eye(d, dtype=torch.float64)
    found = []
    for genes in total.split(BLOCK):
        inverse = torch.linalg.inv(genes.cpu().double().reshape(-1, d, d) + prior)
        found.append(inverse[:, state, state].float().numpy())
    return np.concatenate(found)


def _information(made: CountParameters, likelihood: str) -> torch.Tensor:
    """Return what each count tells of the logarithm of its mean, `(n_cells, n_genes)`."""
    if likelihood == "normal":
        return made.dispersion.square().reciprocal().expand_as(made.mean)
    told = made.mean
    if likelihood != "poisson":
        told = told * made.dispersion / (told + made.dispersion)
    return told if made.zero_logits is None else told * torch.sigmoid(-made.zero_logits)


class HeldOutEffects(NamedTuple):
    """How far predictions of held-out cells are from what was measured, by condition.

    Attributes
    ----------
    code
        Of each condition with enough held-out cells, `(n,)`.
    squared
        Squared differences of the change of `log1p` counts per ten thousand, less what chance alone
        would make of them, summed over genes, `(n,)`.
    """

    code: np.ndarray
    squared: np.ndarray

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        network: GroupedAutoencoder,
        reader: ScreenReader,
        parts: tuple[np.ndarray, np.ndarray],
        *,
        seed: int,
    ) -> Self:
        """Compare held-out cells with training controls of their context and batch, moved.

        `parts` are training and held-out cells.
        """
        random = np.random.default_rng(seed)
        train, held = parts
        controls = train[reader.codes[CONDITION_KEY][train] == 0]
        rows = np.concatenate([controls, held])
        context, batch = (reader.codes[key][rows] for key in (CONTEXT_KEY, BATCH_KEY))
        groups = group_controls(context, batch, np.arange(len(rows)) < len(controls))
        code = reader.codes[CONDITION_KEY][held]
        sums = {}
        for own in _asked(network, code):
            at = random.permutation(np.flatnonzero(code == own))[:MOST]
            pools = [groups.pool(groups.group[len(controls) + i]) for i in at]
            chosen = np.stack([random.choice(pool, N_CONTROLS) for pool in pools])
            sums[own] = _residual(network, reader, held[at], rows[chosen])
        if 0 not in sums:
            return cls(np.zeros(0, dtype=np.int64), np.zeros(0))
        error, noise = sums.pop(0)
        squared = [((e - error) ** 2 - n - noise).sum() for e, n in sums.values()]
        return cls(np.array(list(sums), dtype=np.int64), np.array(squared))


def _asked(network: GroupedAutoencoder, code: np.ndarray) -> list[int]:
    """Return the control and the conditions with most cells, all of whose parts were trained on."""
    used, size = np.unique(code, return_counts=True)
    asked = used[np.argsort(-size, kind="stable")][: (size >= FEWEST).sum()]
    table = network.table.rows(torch.from_numpy(asked).to(network.profile.device))
    known = (network.seen[table.component] | ~table.mask).all(dim=1).cpu().numpy()
    treated = [int(c) for c in asked[known] if c != 0]
    return [*(int(c) for c in asked if c == 0), *treated[:MAX_CONDITIONS]]


def _residual(
    network: GroupedAutoencoder, reader: ScreenReader, cells: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean measured less predicted `log1p` expression of cells of one condition.

    And its sampling variance, `(n_genes,)` each. `starts` are controls for each cell, `(n, k)`.
    """
    device = network.profile.device
    share, away, squares = (np.zeros(network.n_genes) for _ in range(3))
    for part in chunks(len(cells), 256):
        batch: Batch = reader[cells[part]]
        counts, library = batch[X_KEY].numpy(), batch[LIBRARY_KEY].numpy()[:, None]
        tensors = {k: v.to(device) for k, v in reader[starts[part].ravel()].items()}
        code = batch[CONDITION_KEY].to(device).repeat_interleave(starts.shape[1])
        predicted = _expected(network, tensors, code).reshape(len(part), starts.shape[1], -1)
        own = predicted.mean(axis=1)
        difference = counts / np.maximum(library, 1.0) - own
        share += own.sum(axis=0)
        away += difference.sum(axis=0)
        squares += (difference**2).sum(axis=0)
    n = len(cells)
    slope = TARGET_SUM / (1.0 + TARGET_SUM * share / n)
    mean = away / n
    variance = np.maximum(squares / n - mean**2, 0.0) / (n - 1)
    return slope * mean, slope**2 * variance


def _expected(
    network: GroupedAutoencoder, tensors: dict[str, torch.Tensor], code: torch.Tensor
) -> np.ndarray:
    """Return the expected proportions of controls under conditions, `(n, n_genes)`."""
    latent, _ = network.encode(tensors)
    conditions = network.table.rows(code)
    own = network.groups(latent)
    state = own.state + network.shift(conditions, own.identity)
    stay, moved = (shares(network, z, conditions) for z in (latent, own.with_state(state)))
    responds = torch.sigmoid(network.log_odds(conditions)).cpu().numpy()[:, None]
    mixed: np.ndarray = stay + responds * (moved - stay)
    return mixed


def shares(
    network: GroupedAutoencoder,
    latent: torch.Tensor,
    conditions: ConditionTensors | None,
    weight: torch.Tensor | None = None,
) -> np.ndarray:
    """Return the expected proportions of genes in cells, `(n, n_genes)`; see `decode`."""
    one = torch.ones(len(latent), device=latent.device)
    parameters = network.decode(latent, one, None, conditions, weight)
    return expected_proportions(Drawn(np.arange(len(latent)), one, parameters), network.likelihood)


def excess(squared: np.ndarray, stated: np.ndarray) -> float:
    """Return squared errors over what was stated for them, at least 1.

    It is the ratio over all conditions, weighed against the usual one by how much it varies among
    them.

    Parameters
    ----------
    squared
        Measured squared errors of conditions, less chance; single ones may be below 0.
    stated
        Stated squared errors of the same; NaN where nothing was stated.
    """
    known = np.isfinite(stated)
    squared, stated = squared[known], stated[known]
    n, total = len(stated), float(stated.sum())
    if n < 3 or total <= 0:
        return USUAL
    ratio = float(squared.sum()) / total
    variance = n / (n - 1) * float(((squared - ratio * stated) ** 2).sum()) / total**2
    weight = SPREAD**2 / (SPREAD**2 + variance)
    return max(1.0, USUAL + weight * (ratio - USUAL))


#: Reference cells that an effect is averaged over, and draws of operators for its interval.
N_CELLS, N_DRAWS = 300, 50


class CausalEffects(CausalVerbs):
    """`get_perturbation_effects` and `get_perturbation_representation`."""

    #: Number of training cells of each component id, and of controls.
    operator_cells_: np.ndarray
    n_controls_: int
    #: Covariance of each gene's weights of the state, `(n_genes, n_state, n_state)`.
    weight_covariance_: np.ndarray
    #: Squared errors of effects over those that chance leaves, at least 1.
    error_excess_: float

    def get_perturbation_representation(self, names: list[str] | None = None) -> pd.DataFrame:
        """Return the operator of each perturbation at its reference dose and time.

        Parameters
        ----------
        names
            Perturbations trained on or with features; None for all of them.

        Returns
        -------
        pandas.DataFrame
            `(n_perturbations, n_state)`, indexed by name; in standard deviations of the basal
            state of the average cell.

        Raises
        ------
        NotTrainedError
            Before training.
        UnknownPerturbationError
            For a name that is neither.
        """
        self._check_trained()
        seen = self._seen()
        names = self._vocabulary.known(seen) if names is None else list(names)
        ids = torch.tensor([self._vocabulary.id_of(name, seen) for name in names], dtype=torch.long)
        vectors = self._network.operators.vectors.detach().cpu()[ids]
        columns = [f"state_{i}" for i in range(vectors.shape[1])]
        return pd.DataFrame(
            vectors.numpy(), index=pd.Index(names, name="perturbation"), columns=columns
        )

    def get_perturbation_effects(
        self,
        names: Sequence[str] | pd.DataFrame | Mapping[str, Mapping[str, float]] | None = None,
        *,
        by_context: bool = False,
        reference: AnnData | MuData | None = None,
        interval: float = 0.9,
        seed: int | None = 0,
    ) -> AnnData:
        """Return what operators do to genes in reference cells that respond, with intervals.

        Parameters
        ----------
        names
            Perturbations, combinations or a table of conditions; or a mapping of a name of your
            own to weights, `{"A without B": {"A": 1, "B": -1}}`; None for all single
            perturbations that are known.
        by_context
            Whether there is one row for each context of the reference, else one over all.
        reference
            Control cells; None takes the training controls.
        interval
            Coverage aimed at. Intervals hold the error of a vector that is the mean of so many
            cells, that of the decoder's weights, and a factor for the rest, learned from how far
            effects are from those of validation cells. NaN for perturbations known by features
            alone.
        seed
            Seed of the choice of reference cells and of the intervals.

        Returns
        -------
        AnnData
            One row a perturbation (and context). `X`: change of `log1p` counts per ten thousand of
            the summed expression, also in layers `lower`, `upper`, `std`. `obs`: `norm`, the length
            of the operator in standard deviations of the basal state, `norm_error`, what chance
            alone makes of it; `responders`, the share of cells that respond. `obsm["operator"]`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        """
        check_interval(interval)
        if names is None:
            self._check_trained()
            names = self._vocabulary.known(self._seen())
            if not names:
                msg = "No perturbation was registered, so the model has no operators."
                raise SchemaError(msg)
        asked, weight, frame = self._asked_operators(names)
        pools = self._pools(reference, by_context=by_context, seed=seed)
        random = np.random.default_rng(seed)
        tables, layers, operators = [], [], []
        for labels, latent in pools:
            for i in range(len(frame)):
                one = asked.rows(torch.full((len(latent),), i, device=self._device()))
                own = None if weight is None else weight[i].expand(len(latent), -1)
                shift, gene = self._effect(latent, one, own, random, interval)
                share = self._share(one)
                error = float(np.sqrt(self._variance(one, own) * len(shift)))
                tables.append(
                    frame.iloc[i].to_dict()
                    | labels
                    | {
                        "norm": float(np.linalg.norm(shift)),
                        "norm_error": error,
                        "responders": share,
                    }
                )
                layers.append(gene)
                operators.append(shift)
        obs = pd.DataFrame(tables, index=[f"row{i}" for i in range(len(tables))])
        result = AnnData(
            np.stack([g["lfc"] for g in layers]),
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self._screen.genes)),
            layers={k: np.stack([g[k] for g in layers]) for k in ("lower", "upper", "std")},
            obsm={"operator": np.stack(operators)},
        )
        of = "values as given" if self._screen.real_values else "log1p(counts per 10,000)"
        result.uns = self._one_pass(seed, f"change of {of}")
        return result

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Remember how many cells each operator was learned from."""
        codes = reader.codes[CONDITION_KEY][train]
        table, counts = self._screen.table, np.zeros(self._network.operators.n_components)
        used, sizes = np.unique(codes, return_counts=True)
        for code, size in zip(used, sizes, strict=True):
            for part in table.conditions[code].components:
                counts[table.component_index(part.name, part.kind)] += size
        self.operator_cells_ = counts
        self.n_controls_ = int((codes == 0).sum())
        if self._screen.is_perturbed:
            self.weight_covariance_ = weight_covariance(self._network, reader, train, seed=0)
            self.error_excess_ = 1.0  # which what is stated is compared with
            self.error_excess_ = self._excess(reader, train)

    def _excess(self, reader: ScreenReader, train: np.ndarray) -> float:
        """Return how much larger squared errors on validation cells are than what is stated."""
        controls = train[reader.codes[CONDITION_KEY][train] == 0]
        if self._screen.real_values or len(self.validation_indices) == 0:
            return USUAL
        held = HeldOutEffects.of(
            self._network, reader, (train, np.asarray(self.validation_indices)), seed=0
        )
        random = np.random.default_rng(0)
        rows = np.sort(random.permutation(controls)[:N_CELLS])
        latent, _ = encode_cells(
            self._network, lambda i: reader[rows[i]], len(rows), self._device()
        )
        stated = []
        for code in held.code:
            one = self._condition_tensors([self._screen.table.conditions[code]])
            one = one.rows(torch.zeros(len(latent), dtype=torch.long, device=self._device()))
            _, gene = self._effect(latent, one, None, random, 0.9)
            stated.append(self._share(one) ** 2 * float((gene["std"] ** 2).sum()))
        return excess(held.squared, np.array(stated))

    def _pools(
        self, reference: AnnData | MuData | None, *, by_context: bool, seed: int | None
    ) -> list[tuple[dict[str, str], torch.Tensor]]:
        """Return the labels and basal latents of reference cells, in all or of each context."""
        if self._screen.real_values:
            random = np.random.default_rng(seed)
            rows = random.permutation(self.train_indices)[:N_CELLS]
            return [({}, self._basal(self._given(None, np.sort(rows).tolist())))]
        _, cells = self._ask([self._screen.table.control], reference)
        random = np.random.default_rng(seed)
        place: np.ndarray = np.zeros(len(cells), dtype=np.int64)
        labels: list[dict[str, str]] = [{}]
        columns = [c for c in self._screen.context_columns if c in cells.labels]
        if by_context and columns:
            groups = cells.labels.groupby(columns, observed=True, sort=True)
            place = groups.ngroup().to_numpy()
            firsts = cells.labels.iloc[np.unique(place, return_index=True)[1]]
            records = firsts[columns].astype(str).itertuples(index=False)
            labels = [dict(zip(columns, record, strict=True)) for record in records]
        found = []
        for i, own in enumerate(labels):
            rows = np.flatnonzero(place == i)
            if len(rows) > N_CELLS:
                rows = np.sort(random.choice(rows, N_CELLS, replace=False))
            latents = self._latents_of(cells, rows)
            found.append((own, latents.mean))
        return found

    @torch.inference_mode()
    def _effect(
        self,
        latent: torch.Tensor,
        conditions: ConditionTensors,
        weight: torch.Tensor | None,
        random: np.random.Generator,
        interval: float,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the mean operator over cells, and its effect on genes with its interval."""
        latent = latent.to(self._device())
        own = self._groups(latent)
        shift = self._network.shift(conditions, own.identity, weight)
        operator = shift.mean(0).cpu().numpy()
        control = self._profile(latent, None)
        profile = self._profile(own.with_state(own.state + shift), conditions, weight)
        sd = float(np.sqrt(self._variance(conditions, weight)))
        std = np.full_like(profile, np.nan)
        if np.isfinite(sd):
            draws = []
            for _ in range(N_DRAWS):
                noise = sd * random.standard_normal(shift.shape[1]).astype(np.float32)
                moved = own.state + shift + torch.from_numpy(noise).to(shift.device)
                draws.append(self._profile(own.with_state(moved), conditions, weight))
            std = np.sqrt(
                self.error_excess_
                * (np.var(draws, axis=0, ddof=1) + self._weight_variance(operator, profile))
            )
        centre, half = profile - control, norm.ppf(0.5 + interval / 2) * std
        return operator, {"lfc": centre, "lower": centre - half, "upper": centre + half, "std": std}

    def _weight_variance(self, operator: np.ndarray, profile: np.ndarray) -> np.ndarray:
        """Return the variance of an effect that is due to the decoder's weights, `(n_genes,)`."""
        if not operator.any():
            return np.zeros_like(profile)
        variance: np.ndarray = np.einsum(
            "s,gst,t->g", operator, self.weight_covariance_, operator, optimize=True
        )
        if self._network.likelihood == "normal":
            return variance
        # Weights are of the logarithm of a mean m, profiles of that of 1 + m.
        return variance * (1.0 - np.exp(-profile)) ** 2

    def _variance(self, conditions: ConditionTensors, weight: torch.Tensor | None) -> float:
        """Return the variance of each entry of an operator: that of means of so many cells."""
        mask = conditions.mask[0].cpu().numpy()
        ids = conditions.component[0].cpu().numpy()[mask]
        if len(ids) == 0:
            return 0.0
        factor = np.ones(len(ids)) if weight is None else weight[0].cpu().numpy()[mask]
        cells = self.operator_cells_[ids] * self._share(conditions)
        with np.errstate(divide="ignore"):
            own = factor**2 / cells
        control = factor.sum() ** 2 / max(self.n_controls_, 1)
        total = float(own.sum() + control)
        return total if np.isfinite(total) else float("nan")

    @torch.inference_mode()
    def _share(self, conditions: ConditionTensors) -> float:
        """Return the share of cells that respond to the first of some conditions."""
        return float(torch.sigmoid(self._network.log_odds(conditions))[0])

    def _profile(
        self,
        latent: torch.Tensor,
        conditions: ConditionTensors | None,
        weight: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Return `log1p` counts per ten thousand of the cells' summed expression, `(n_genes,)`."""
        if self._screen.real_values:
            one = torch.ones(len(latent), device=latent.device)
            values = self._network.decode(latent, one, None, conditions, weight)
            return values.mean.mean(0).cpu().numpy()
        share = shares(self._network, latent, conditions, weight).mean(axis=0)
        profile: np.ndarray = np.log1p(TARGET_SUM * share)
        return profile
