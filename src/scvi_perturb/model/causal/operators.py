"""Verbs of `CausalPerturbVAE` on operators: cells under other conditions, and effects on genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import SchemaError, generator
from scvi_perturb.data.request import parse_request
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.draw import cell_obs
from scvi_perturb.model.base.model import PerturbationModel
from scvi_perturb.model.causal.draw import (
    ConditionedLatents,
    condition_tensors,
    decoded_adata,
    encode_data,
    encode_reference,
    unperturbed_latents,
)
from scvi_perturb.model.causal.effects import (
    N_CELLS,
    OperatorErrors,
    expected_profile,
    gene_effect,
    responder_share,
)
from scvi_perturb.module.base import ConditionTensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData
    from torch import Tensor

    from scvi_perturb.data.screen import Screen
    from scvi_perturb.model.base.draw import Output
    from scvi_perturb.model.base.reference import Plan, Reference, Vocabulary
    from scvi_perturb.module.causal import CausalModule, GroupedAutoencoder

#: Weighted sums of perturbations, by name.
Sums: TypeAlias = "Mapping[str, Mapping[str, float]]"


@checked
class OperatorMixin(PerturbationModel):
    """`counterfactual`, `interpolate`, `transfer`, and the operators as tables."""

    module: CausalModule
    #: Covariance of identity within contexts and between them, and the mean over contexts.
    identity_spread_: dict[str, np.ndarray]
    #: Errors of operators, see `OperatorErrors`.
    operator_errors_: dict[str, Any]

    def counterfactual(
        self,
        adata: AnnData | MuData | None,
        conditions: str | Sequence[str] | pd.DataFrame | Sums,
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
        self._check_trained()
        network = self.module.representation
        given = encode_data(network, self._vocabulary, self._manager(adata), indices)
        asked = _parse_operators(conditions, network, self._vocabulary, self._screen)
        n, n_rows = len(given), len(asked.frame)
        at = torch.arange(n_rows, device=self._device()).repeat_interleave(n)
        rows = asked.conditions.rows(at)
        weight = None if asked.weight is None else asked.weight[at]
        basal = unperturbed_latents(network, given).repeat(n_rows, 1)
        latent = _shifted(network, basal, rows, weight)
        obs = asked.frame.loc[asked.frame.index.repeat(n)].reset_index(drop=True)
        obs["reference_cell"] = np.tile(given.names.astype(str).to_numpy(), n_rows)
        obs.index = pd.Index([f"row{i}_cell{j}" for i in range(n_rows) for j in range(n)])
        cells = ConditionedLatents(latent, np.tile(given.library, n_rows), rows, weight)
        return self._decoded(cells, obs, output=output, seed=seed)

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
        plan, network = self._plan([start], reference, n_samples, seed), self.module.representation
        request = parse_request([start, end], self._screen)
        both = condition_tensors(network, self._vocabulary, request.conditions)
        fractions = np.linspace(0.0, 1.0, n_steps)
        line = _on_the_line(network, plan, both, fractions)
        obs = cell_obs(plan, self._screen).drop(columns="draw")
        every = pd.concat([obs.assign(fraction=f, start=start, end=end) for f in fractions])
        every.index = pd.Index([f"{name}_{i}" for i in range(n_steps) for name in obs.index])
        every = every.drop(columns=self._screen.keys.perturbation)
        return self._decoded(line, every, output=output, seed=seed)

    def transfer(
        self,
        reference: AnnData | MuData,
        conditions: str | Sequence[str] | pd.DataFrame,
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
        NotTrainedError, UnknownPerturbationError, SchemaError, ValueError
            As for :meth:`counterfactual`.
        """
        check_choice("output", output, ("counts", "mean"))
        plan = self._plan(conditions, reference, n_samples, seed)
        network, random = self.module.representation, generator(seed, self._device())
        latents = encode_reference(network, plan.cells, np.arange(len(plan.cells)))
        own = network.groups(latents.draw(plan.reference, random))
        means = network.groups(latents.mean).identity.double().numpy()
        identity = _draw_identities(means, plan, self.identity_spread_, random)
        rows = condition_tensors(network, self._vocabulary, plan.request.conditions).rows(
            torch.from_numpy(plan.row).to(random.device)
        )
        with torch.inference_mode():
            basal = torch.randn(own.state.shape, generator=random, device=random.device)
            state = basal + network.draw_shift(rows, identity, random)
        latent = own._replace(identity=identity).with_state(state).cpu()
        obs = cell_obs(plan, self._screen)
        drawn = ConditionedLatents(latent, plan.library, rows)
        return self._decoded(drawn, obs, output=output, seed=seed)

    def get_perturbation_representation(self, names: list[str] | None = None) -> pd.DataFrame:
        """Return the operator of each perturbation at its reference dose and time.

        Parameters
        ----------
        names
            As for :meth:`PerturbDiffusion.get_perturbation_representation`, and what is raised.

        Returns
        -------
        pandas.DataFrame
            `(n_perturbations, n_state)`, indexed by name; in standard deviations of the basal
            state of the average cell.
        """
        self._check_trained()
        seen = self._seen()
        names = self._vocabulary.known(seen) if names is None else list(names)
        ids = torch.tensor([self._vocabulary.id_of(name, seen) for name in names], dtype=torch.long)
        vectors = self.module.representation.operators.vectors.detach().cpu()[ids]
        columns = [f"state_{i}" for i in range(vectors.shape[1])]
        return pd.DataFrame(
            vectors.numpy(), index=pd.Index(names, name="perturbation"), columns=columns
        )

    def get_perturbation_effects(
        self,
        names: Sequence[str] | pd.DataFrame | Sums | None = None,
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
            Seed of the choice of reference cells.

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
        network, screen = self.module.representation, self._screen
        if names is None:
            self._check_trained()
            names = self._vocabulary.known(self._seen())
            if not names:
                msg = "No perturbation was registered, so the model has no operators."
                raise SchemaError(msg)
        asked = _parse_operators(names, network, self._vocabulary, screen)
        pools = self._pools(reference, by_context=by_context, seed=seed)
        errors = OperatorErrors(**self.operator_errors_)
        tables, layers, operators = [], [], []
        for labels, latent in pools:
            with torch.inference_mode():
                control = expected_profile(network, latent.to(self._device()), None)
            for i in range(len(asked.frame)):
                one, own = asked.row(i, len(latent))
                shift, gene = gene_effect(
                    network, latent, one, own, control=control, errors=errors, interval=interval
                )
                share = responder_share(network, one)
                error = float(np.sqrt(errors.of_operator(one, own, share) * len(shift)))
                norm = float(np.linalg.norm(shift))
                sizes = {"norm": norm, "norm_error": error, "responders": share}
                tables.append(asked.frame.iloc[i].to_dict() | labels | sizes)
                layers.append(gene)
                operators.append(shift)
        result = AnnData(
            np.stack([g["lfc"] for g in layers]),
            obs=pd.DataFrame(tables, index=[f"row{i}" for i in range(len(tables))]),
            var=pd.DataFrame(index=pd.Index(screen.genes)),
            layers={k: np.stack([g[k] for g in layers]) for k in ("lower", "upper", "std")},
            obsm={"operator": np.stack(operators)},
        )
        of = "values as given" if screen.is_continuous else "log1p(counts per 10,000)"
        result.uns = self._provenance(SamplerConfig(), seed, f"change of {of}")
        return result

    def _pools(
        self, reference: AnnData | MuData | None, *, by_context: bool, seed: int | None
    ) -> list[tuple[dict[str, str], Tensor]]:
        """Return the labels and basal latents of reference cells, in all or of each context."""
        network, random = self.module.representation, np.random.default_rng(seed)
        if self._screen.is_continuous:
            self._check_trained()
            rows = np.sort(random.permutation(self.train_indices)[:N_CELLS])
            cells = encode_data(network, self._vocabulary, self._manager(None), rows.tolist())
            return [({}, unperturbed_latents(network, cells))]
        controls = self._plan([self._screen.table.control], reference, None, seed).cells
        columns = self._screen.keys.context if by_context else ()
        pools = _control_pools(controls, columns, random)
        return [(own, encode_reference(network, controls, rows).mean) for own, rows in pools]

    def _decoded(
        self, cells: ConditionedLatents, obs: pd.DataFrame, *, output: Output, seed: int | None
    ) -> AnnData:
        """Return cells as AnnData, with counts or their means."""
        network = self.module.representation
        result = decoded_adata(network, self._screen, cells, obs, output=output, seed=seed)
        units = self._units if output == "counts" else f"expected {self._units}"
        result.uns = self._provenance(SamplerConfig(), seed, units)
        return result


class OperatorRequest(NamedTuple):
    """Conditions or sums of operators, one row each, and what they are called."""

    conditions: ConditionTensors  # of a sum at reference doses and times
    weight: Tensor | None  # of each component of a sum, `(n, m)`
    frame: pd.DataFrame

    def row(self, i: int, n: int) -> tuple[ConditionTensors, Tensor | None]:
        """Return one row `n` times, with its weights."""
        at = torch.full((n,), i, device=self.conditions.time.device)
        return self.conditions.rows(at), None if self.weight is None else self.weight[at]


def _parse_operators(
    conditions: str | Sequence[str] | pd.DataFrame | Sums,
    network: GroupedAutoencoder,
    vocabulary: Vocabulary,
    screen: Screen,
) -> OperatorRequest:
    """Read conditions or sums of operators."""
    keys = screen.keys
    if isinstance(conditions, Mapping):
        tensors, weight = _operator_sums(conditions, network, vocabulary)
        return OperatorRequest(tensors, weight, pd.DataFrame({keys.perturbation: list(conditions)}))
    request = parse_request(conditions, screen)
    if request.context or request.batch is not None:
        msg = "The cells say their context and batch; ask with conditions alone."
        raise SchemaError(msg)
    names = {"perturbation": keys.perturbation} | {
        name: column
        for name, column in (
            ("dose", keys.dose),
            ("time", keys.time),
            ("perturbation_type", keys.kind),
        )
        if column is not None
    }
    frame = screen.table.frame(request.conditions)[list(names)].rename(columns=names)
    return OperatorRequest(condition_tensors(network, vocabulary, request.conditions), None, frame)


def _operator_sums(
    sums: Sums, network: GroupedAutoencoder, vocabulary: Vocabulary
) -> tuple[ConditionTensors, Tensor]:
    """Return sums as conditions at reference doses and times, and the weights of components."""
    seen = network.seen.cpu().numpy()
    shape = len(sums), max([len(parts) for parts in sums.values()] + [1])
    component = np.zeros(shape, dtype=np.int64)
    weight = np.zeros(shape, dtype=np.float32)
    mask = np.zeros(shape, dtype=bool)
    for i, (name, parts) in enumerate(sums.items()):
        if not parts or not np.isfinite(np.array(list(parts.values()), dtype=float)).all():
            msg = f"{name!r} is {dict(parts)}; expected finite weights of perturbations."
            raise SchemaError(msg)
        for j, (perturbation, value) in enumerate(parts.items()):
            component[i, j] = vocabulary.id_of(perturbation, seen)
            weight[i, j], mask[i, j] = value, True
    device = network.profile.device
    ids, weights, there = (torch.from_numpy(x).to(device) for x in (component, weight, mask))
    time = torch.full((len(sums),), torch.nan, device=device)
    dose = network.operators.reference_dose[ids]
    return ConditionTensors(ids, dose, there, time), weights


@torch.inference_mode()
def _shifted(
    network: GroupedAutoencoder,
    latent: Tensor,
    conditions: ConditionTensors,
    weight: Tensor | None = None,
) -> Tensor:
    """Return latents with the shift of each cell's condition added to the state, on the CPU."""
    own = network.groups(latent.to(network.profile.device))
    state = own.state + network.shift(conditions, own.identity, weight)
    return own.with_state(state).cpu()


def _on_the_line(
    network: GroupedAutoencoder,
    plan: Plan,
    both: ConditionTensors,
    fractions: np.ndarray,
) -> ConditionedLatents:
    """Return the cells of a plan at points between two conditions, points in turn."""
    device, n = network.profile.device, len(plan)
    used, place = np.unique(plan.reference, return_inverse=True)
    mean = encode_reference(network, plan.cells, used).mean[torch.from_numpy(place)]
    ends = [
        _shifted(network, mean, both.rows(torch.full((n,), i, device=device))) for i in range(2)
    ]
    points = torch.cat([torch.lerp(ends[0], ends[1], float(f)) for f in fractions])
    # Of the genes that both edit, as much is corrected as each has of the point.
    component, dose, mask = (x.reshape(1, -1) for x in both[:3])
    joined = ConditionTensors(component, dose, mask, both.time[:1])
    rows = joined.rows(torch.zeros(len(points), dtype=torch.long, device=device))
    at = torch.from_numpy(fractions).to(points.dtype)
    weight = torch.stack([1 - at, at], dim=1).repeat_interleave(both.mask.shape[1], dim=1)
    weight = weight.repeat_interleave(n, dim=0).to(device)
    library = np.tile(plan.library, len(fractions))
    return ConditionedLatents(points, library, rows, weight)


def _draw_identities(
    means: np.ndarray, plan: Plan, spread: dict[str, np.ndarray], random: torch.Generator
) -> Tensor:
    """Draw identities of the population of the reference cells, of mean `means`, of each row."""
    found = []
    for row in np.unique(plan.row):
        pool = np.unique(plan.reference[plan.row == row])
        noise = spread["within"] / len(pool)
        gain = spread["between"] @ np.linalg.inv(spread["between"] + noise)
        centre = spread["centre"] + gain @ (means[pool].mean(axis=0) - spread["centre"])
        n = int((plan.row == row).sum())
        unit = torch.randn(n, len(centre), generator=random, device=random.device).cpu()
        values, vectors = np.linalg.eigh(spread["within"])
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        found.append(centre + unit.double().numpy() @ root.T)
    return torch.from_numpy(np.concatenate(found)).float().to(random.device)


def _control_pools(
    cells: Reference, columns: Sequence[str], random: np.random.Generator
) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Yield the labels and some rows of the reference cells, in all or of each context."""
    place: np.ndarray = np.zeros(len(cells), dtype=np.int64)
    labels: list[dict[str, str]] = [{}]
    columns = [c for c in columns if c in cells.labels]
    if columns:
        groups = cells.labels.groupby(columns, observed=True, sort=True)
        place = groups.ngroup().to_numpy()
        firsts = cells.labels.iloc[np.unique(place, return_index=True)[1]]
        records = firsts[columns].astype(str).itertuples(index=False)
        labels = [dict(zip(columns, record, strict=True)) for record in records]
    for i, own in enumerate(labels):
        rows = np.flatnonzero(place == i)
        if len(rows) > N_CELLS:
            rows = np.sort(random.choice(rows, N_CELLS, replace=False))
        yield own, rows
