"""Metadata to expression and back, and likelihoods of `CausalPerturbVAE`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, LIBRARY_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb._random import generator
from scvi_perturb.data.condition import Condition
from scvi_perturb.model.base.draw import Drawn, Plan, effects_table, library_shift, write_cells
from scvi_perturb.model.base.latents import chunks
from scvi_perturb.model.base.request import parse_request
from scvi_perturb.model.base.setup import Screen, check_n_samples
from scvi_perturb.model.causal.effects import CausalEffects
from scvi_perturb.model.causal.fit import labels_of
from scvi_perturb.model.causal.setup import MetadataRows, parse_rows
from scvi_perturb.module.causal import perturbation_inputs
from scvi_perturb.nn.metadata import gaussian_log_prob
from scvi_perturb.similarity.novelty import UNKNOWN, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.model.base.draw import LibrarySize
    from scvi_perturb.model.causal.draw import GivenCells
    from scvi_perturb.module.base import ConditionTensors, CountParameters
    from scvi_perturb.nn.metadata import MetadataHead, MetadataSpec

__all__ = ["CausalLikelihood", "CausalMetadata"]


_CHUNK = 512


class CausalLikelihood(CausalEffects):
    """`log_likelihood_bound` and `anomaly_scores`."""

    def log_likelihood_bound(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        n_samples: int | None = None,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> np.ndarray:
        """Return a lower bound on the log-likelihood of each cell's counts, its library given.

        `log 1/K sum_k p(x | z_k) p(z_k | condition, metadata) / q(z_k | x)` with latents drawn
        from the encoder; it rises to the log-likelihood with K.

        Parameters
        ----------
        adata, indices, seed, key_added
            As for :meth:`PerturbDiffusion.log_likelihood_bound`.
        n_samples
            Latents a cell, K; None takes 32.

        Returns
        -------
        numpy.ndarray
            `(n_cells,)`, nats.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, ValueError
            As for :meth:`PerturbDiffusion.log_likelihood_bound`.

        References
        ----------
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        check_n_samples(n_samples)
        n_samples = 32 if n_samples is None else n_samples
        given = self._given(adata, indices, key_added)
        values = self._bound(given, given.conditions, n_samples, seed)
        if key_added is not None:
            (self.adata if adata is None else adata).obs[key_added] = values
        return values

    def anomaly_scores(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        n_samples: int = 32,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Score cells by how little they fit their condition and metadata.

        Parameters
        ----------
        adata, indices
            As for :meth:`log_likelihood_bound`.
        n_samples
            Latents a cell.
        seed
            Seed of the draws.
        key_added
            Prefix of two columns of `obs` to write to as well, e.g. `"anomaly"` for
            `anomaly_surprise` and `anomaly_control_ratio`; needs `indices=None`.

        Returns
        -------
        pandas.DataFrame
            One row a cell, nats. `surprise`: minus the log-density of the mean latent under the
            priors given condition and metadata; the raw likelihood would follow the depth.
            `control_ratio`: the bound of the likelihood under control less that under the own
            condition, high for cells that look as if the perturbation had not reached them, 0
            for controls.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, ValueError
            As for :meth:`log_likelihood_bound`.
        """
        check_n_samples(n_samples)
        given = self._given(adata, indices, key_added)
        device = self._device()
        with torch.inference_mode():
            at_mean = self._prior_log_prob(
                given, np.arange(len(given)), given.latents.mean.to(device), given.conditions
            )
        none = self._condition_tensors([Condition()])
        control = none.rows(torch.zeros(len(given), dtype=torch.long, device=device))
        own, under = (self._bound(given, c, n_samples, seed) for c in (given.conditions, control))
        ratio = np.where(given.codes[CONDITION_KEY] == 0, 0.0, under - own)
        table = pd.DataFrame(
            {"surprise": -at_mean.cpu().numpy(), "control_ratio": ratio}, index=given.names
        )
        if key_added is not None:
            data = self.adata if adata is None else adata
            for name in table:
                data.obs[f"{key_added}_{name}"] = table[name].to_numpy()
        return table

    @torch.inference_mode()
    def _bound(
        self, given: GivenCells, conditions: ConditionTensors, n_samples: int, seed: int | None
    ) -> np.ndarray:
        """Return the importance-weighted bound of given cells under conditions, `(n_cells,)`."""
        device, network = self._device(), self._network
        # The same noise for all cells: what a cell gets does not depend on the others.
        shape = (n_samples, 1, network.n_latent)
        noises = torch.randn(shape, generator=generator(seed, device), device=device)
        values = np.zeros(len(given))
        for rows in chunks(len(given), _CHUNK):
            at = torch.from_numpy(rows)
            batch = {k: v.to(device) for k, v in given.reader[given.rows[rows]].items()}
            mean, log_variance = (
                network.groups(x[at].to(device))
                for x in (given.latents.mean, given.latents.log_variance)
            )
            own, weights = conditions.rows(at.to(device)), []
            for noise in noises:
                latent = given.latents.at(rows, noise)
                parameters = network.decode(latent, batch[LIBRARY_KEY], None, own)
                drawn = network.groups(latent)
                proposal = sum(
                    gaussian_log_prob(d, m, v)
                    for d, m, v in zip(
                        (drawn.identity, drawn.state, drawn.technical[:, 1:]),
                        (mean.identity, mean.state, mean.technical[:, 1:]),
                        (log_variance.identity, log_variance.state, log_variance.technical[:, 1:]),
                        strict=True,
                    )
                )
                prior = self._prior_log_prob(given, rows, latent, own)
                weights.append(network.log_prob(batch, parameters) + prior - proposal)
            bound = torch.logsumexp(torch.stack(weights).double(), dim=0) - np.log(n_samples)
            values[rows] = bound.cpu().numpy()
        return values

    def _prior_log_prob(
        self,
        given: GivenCells,
        rows: np.ndarray,
        latent: torch.Tensor,
        conditions: ConditionTensors,
    ) -> torch.Tensor:
        """Return the log-density of latents, depth left out, under their priors, `(n,)`."""
        network = self._network
        own = network.groups(latent)
        fields = given.latents.fields_of(rows, latent.device)
        total = network.identity_prior.log_prob(own.identity, fields)
        total = total + network.technical_prior.log_prob(own.technical[:, 1:], fields)
        shift, odds = network.shift(conditions, own.identity), network.log_odds(conditions)
        unit = torch.zeros_like(shift)
        moved = gaussian_log_prob(own.state, shift, unit)
        stayed = gaussian_log_prob(own.state, unit, unit)
        # Where all respond the odds are infinite, and the second part is nothing.
        mixed = torch.logaddexp(
            moved + torch.nn.functional.logsigmoid(odds),
            stayed + torch.nn.functional.logsigmoid(-odds),
        )
        state: torch.Tensor = total + mixed
        return state

    def _decode_cells(
        self, latent: torch.Tensor, batch: dict[str, torch.Tensor], adata: AnnData | MuData | None
    ) -> CountParameters:
        """Decode latents of given cells, edited genes corrected."""
        table, seen = Screen.from_registry(self._manager(adata).registry).table, self._seen()
        used, which = torch.unique(batch[CONDITION_KEY], return_inverse=True)
        known = {*self._vocabulary.known(seen)}
        # The posterior needs no operator: of what is not known only the correction is left out.
        own = [
            c if known.issuperset(c.names) else Condition()
            for c in (table.conditions[int(code)] for code in used)
        ]
        conditions = self._condition_tensors(own)
        rows = conditions.rows(which.to(latent.device))
        return self._network.decode(latent, batch[LIBRARY_KEY].to(latent.device), None, rows)


#: Draws of the latent over which predictions of metadata are averaged.
N_DRAWS = 8
#: Draws of identity over which a signature is averaged.
N_SIGNATURE_DRAWS = 200


class CausalMetadata(CausalLikelihood):
    """`predict_metadata`, and draws from metadata alone."""

    #: Mean of the log library size of each batch, the overall one last, and the spread around it.
    depth_: dict[str, np.ndarray]

    def predict_metadata(
        self,
        adata: AnnData | MuData | None = None,
        *,
        fields: Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Predict the metadata of cells, and their perturbation.

        Each column is read from its own group: contexts and further identity metadata from the
        identity, batch and technical metadata from the technical latents, the perturbation (at
        whatever dose and time) from the state.

        Parameters
        ----------
        adata
            Cells with the genes of training; None for the data of training. The columns that are
            registered must be there; their values are not read, and may be anything.
        fields
            Columns to predict; None for all that have several labels or are numbers.
        indices
            Cells, in the order wanted; None for all.
        seed
            Seed of the draws of latents over which probabilities are averaged.
        key_added
            Prefix of columns of `obs` to write to as well: `<prefix>_<field>`, the most probable
            label or the expected number, and `<prefix>_<field>_probability` or `_std`; needs
            `indices=None`.

        Returns
        -------
        dict of pandas.DataFrame
            Field -> one row a cell: probabilities of the labels, a column each; or `mean` and
            `std` of a number.

        Raises
        ------
        NotTrainedError
            Before training.
        SchemaError
            For a field that cannot be predicted.
        """
        given = self._given(adata, indices, key_added, with_conditions=False)
        heads = self._heads()
        chosen = list(heads) if fields is None else list(fields)
        wrong = sorted(set(chosen) - set(heads))
        if wrong:
            msg = f"Fields {wrong} cannot be predicted; the model predicts {sorted(heads)}."
            raise SchemaError(msg)
        found = {}
        for field in chosen:
            random = generator(seed, self._device())
            table = self._read_head(heads[field], given.latents, random)
            found[field] = table.set_axis(given.names, axis=0)
        if key_added is not None:
            obs = (self.adata if adata is None else adata).obs
            for field, table in found.items():
                _write(obs, f"{key_added}_{field}", table)
        return found

    def _heads(self) -> dict[str, tuple[str, str, MetadataSpec, tuple[str, ...] | None]]:
        """Return for each field the head, the group it reads, the column and its labels."""
        screen, network = self._screen, self._network
        levels: dict[str, tuple[str, ...] | None] = {c.name: c.levels for c in screen.metadata}
        for i, column in enumerate(screen.context_columns):
            levels[column] = tuple(sorted({row[i] for row in screen.contexts}))
        if screen.batch_column is not None:
            levels[screen.batch_column] = tuple(sorted({row[0] for row in screen.batches}))
        found = {}
        for group in ("identity", "technical"):
            for i, spec in enumerate(getattr(network, f"{group}_prior").metadata.specs):
                name = f"{group}_{i}"
                if name in self.module.heads:
                    found[spec.name] = (name, group, spec, levels[spec.name])
        if "perturbation" in self.module.heads:
            spec = cast("MetadataHead", self.module.heads["perturbation"]).spec
            labels = tuple(labels_of(screen)[0])
            found[screen.keys.perturbation] = ("perturbation", "state", spec, labels)
        return found

    @torch.inference_mode()
    def _read_head(
        self,
        head: tuple[str, str, MetadataSpec, tuple[str, ...] | None],
        latents: Any,  # noqa: ANN401
        random: torch.Generator,
    ) -> pd.DataFrame:
        """Return the prediction of one field, averaged over draws of the latent."""
        name, group, spec, labels = head
        network, blocks = self._network, []
        for rows in chunks(len(latents.mean)):
            outputs = []
            for _ in range(N_DRAWS):
                drawn = network.groups(latents.draw(rows, random))
                own = {
                    "identity": drawn.identity,
                    "state": perturbation_inputs(drawn),
                    "technical": drawn.technical[:, 1:],
                }
                outputs.append(self.module.heads[name](own[group]))
            each = torch.stack(outputs)
            if not spec.is_numeric:
                blocks.append(each.softmax(-1).mean(0).cpu().numpy())
                continue
            mean, log_sd = each[..., 0], each[..., 1].clamp(-4.0, 2.0)
            variance = mean.var(0) + (2 * log_sd).exp().mean(0)
            blocks.append(torch.stack([mean.mean(0), variance.sqrt()], 1).cpu().numpy())
        values = np.concatenate(blocks)
        if labels is not None:
            return pd.DataFrame(values, columns=pd.Index(labels, name=spec.name))
        encoder = getattr(network, f"{group}_prior").metadata
        i = [s.name for s in encoder.specs].index(spec.name)
        centre, spread = (float(getattr(encoder, f"{k}_{i}")) for k in ("centre", "spread"))
        return pd.DataFrame({"mean": centre + spread * values[:, 0], "std": spread * values[:, 1]})

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Remember the depth of each batch."""
        super()._after_training(reader, train)
        if self._screen.real_values:
            return
        depth = np.log(np.maximum(reader.library_sizes()[train].astype(float), 1.0))
        batch = reader.codes[BATCH_KEY][train]
        overall = depth.mean()
        means = [
            depth[batch == code].mean() if (batch == code).any() else overall
            for code in range(len(self._screen.batches))
        ]
        away = depth - np.array(means)[batch]
        self.depth_ = {
            "mean": np.array([*means, overall]),
            "std": np.array([away.std(), depth.std()]),
        }

    def _sample_metadata(
        self,
        metadata: pd.DataFrame,
        *,
        n_samples: int | None,
        seed: int | None,
        library_size: LibrarySize,
        path: str | Path | None,
    ) -> AnnData:
        """Draw cells from the priors alone."""
        self._check_trained()
        n = 1 if n_samples is None else n_samples
        check_n_samples(n)
        rows = parse_rows(metadata, self._screen)
        self._warn_of_untrained(rows)
        obs = rows.frame.loc[rows.frame.index.repeat(n)].reset_index(drop=True)
        obs["row"] = np.repeat(np.arange(len(rows)), n)
        obs["draw"] = np.tile(np.arange(n), len(rows))
        obs.index = pd.Index([f"row{i}_draw{j}" for i in range(len(rows)) for j in range(n)])
        return write_cells(
            self._drawn_from(rows, np.repeat(np.arange(len(rows)), n), seed, library_size),
            obs=obs,
            screen=self._screen,
            likelihood=self._network.likelihood,
            uns=self._one_pass(seed, self._units, library_size=str(library_size)),
            seed=seed,
            path=path,
        )

    def _warn_of_untrained(self, rows: MetadataRows) -> None:
        """Warn of labels that no training cell has: they count as missing."""
        for prior in (self._network.identity_prior, self._network.technical_prior):
            for i, spec in enumerate(prior.metadata.specs):
                if spec.is_numeric:
                    continue
                values = torch.from_numpy(rows.fields[spec.name])
                trained = prior.metadata.present(i, values.to(self._device())).cpu()
                lost = ((values >= 0) & ~trained).numpy()
                if lost.any():
                    labels = sorted(set(rows.frame.loc[lost, spec.name].astype(str)))
                    msg = (
                        f"No training cell has {spec.name} {labels}. The "
                        "cells are drawn as of a label that is not known, which is wider."
                    )
                    warnings.warn(msg, UserWarning, stacklevel=4)

    def _drawn_from(
        self,
        rows: MetadataRows,
        which: np.ndarray,
        seed: int | None,
        library_size: LibrarySize,
    ) -> Iterator[Drawn]:
        """Yield cells of rows of metadata, `which` row each."""
        self.module.eval()
        device, network = self._device(), self._network
        random = generator(seed, device)
        conditions = self._condition_tensors(rows.conditions)
        fields = self._row_fields(rows)
        library = self._row_library(rows, which, seed, library_size)
        for chunk in chunks(len(which)):
            at = torch.from_numpy(which[chunk]).to(device)
            own = {name: values[at] for name, values in fields.items()}
            asked, n = conditions.rows(at), len(chunk)
            with torch.inference_mode():
                identity = network.identity_prior.draw(own, n, random)
                technical = network.technical_prior.draw(own, n, random)
                shape = (n, network.sizes[1])
                basal = torch.randn(shape, generator=random, device=device)
                state = basal + self._response(asked, identity, random)
                depth = torch.zeros(n, 1, device=device)
                latent = torch.cat([identity, state, depth, technical], dim=1)
                size = torch.from_numpy(library[chunk].astype(np.float32)).to(device)
                yield Drawn(chunk, size, network.decode(latent, size, None, asked))

    def _row_fields(self, rows: MetadataRows) -> dict[str, torch.Tensor]:
        """Return the metadata of rows as the module takes them, on the device."""
        columns = self._network.columns
        return {
            name: torch.from_numpy(rows.fields[name]).to(self._device())
            for name in (*columns["identity"], *columns["technical"])
        }

    def _row_library(
        self, rows: MetadataRows, which: np.ndarray, seed: int | None, library_size: LibrarySize
    ) -> np.ndarray:
        """Return the library size of each cell: drawn as in training, or the number given."""
        if self._screen.real_values:
            return np.ones(len(which))
        if not isinstance(library_size, str):
            if not library_size > 0:
                msg = f"library_size={library_size!r}; expected a positive number of counts."
                raise ValueError(msg)
            return np.full(len(which), float(library_size))
        mean = self.depth_["mean"][rows.batch[which]]
        std = self.depth_["std"][(rows.batch[which] < 0).astype(int)]
        size = mean + std * np.random.default_rng(seed).standard_normal(len(which))
        if library_size == "predicted":
            shifts, table = self.library_shifts_, self._screen.table
            size = (
                size + np.array([library_shift(c, shifts, table) for c in rows.conditions])[which]
            )
        elif library_size != "reference":
            msg = f"library_size={library_size!r}; expected 'reference', 'predicted' or a number."
            raise ValueError(msg)
        return np.exp(size)

    def _predict_signatures(
        self, conditions: Sequence[str] | pd.DataFrame, *, interval: float, seed: int | None
    ) -> AnnData:
        """Predict mean signatures of conditions, averaged over identities of their context."""
        self._check_trained()
        request = parse_request(conditions, self._screen)
        frame = pd.DataFrame(
            {c: [label or np.nan for label in labels] for c, labels in request.context.items()},
            index=range(len(request)),
        )
        if request.batch is not None and self._screen.batch_column is not None:
            frame[self._screen.batch_column] = [label or np.nan for label in request.batch]
        rows = parse_rows(frame, self._screen)
        self._warn_of_untrained(rows)
        fields, device = self._row_fields(rows), self._device()
        random = generator(seed, device)
        tensors, n = self._condition_tensors(request.conditions), N_SIGNATURE_DRAWS
        profiles, layers = [], []
        for i in range(len(request)):
            at = torch.full((n,), i, dtype=torch.long, device=device)
            own = {name: values[at] for name, values in fields.items()}
            with torch.inference_mode():
                identity = self._network.identity_prior.draw(own, n, random)
                technical = self._network.technical_prior.draw(own, n, random)
                state = torch.zeros(n, self._network.sizes[1], device=device)
                depth = torch.zeros(n, 1, device=device)
                latent = torch.cat([identity, state, depth, technical], dim=1)
                control = self._profile(latent, None)
            numbers = np.random.default_rng(seed)
            _, gene = self._effect(latent, tensors.rows(at), None, numbers, interval)
            profiles.append(control + gene["lfc"])
            layers.append(gene)
        names = ("lfc", "lower", "upper", "std")
        none = np.zeros(len(request), dtype=np.int64)
        result = effects_table(
            np.stack(profiles),
            {k: np.stack([g[k] for g in layers]) for k in names},
            Plan(np.arange(len(request)), none, none),
            request,
            self._screen,
        )
        labels = frame.reindex(columns=list(self._screen.context_columns)).fillna(UNKNOWN)
        places = [
            Place(condition, tuple(map(str, labels.iloc[i])))
            for i, condition in enumerate(request.conditions)
        ]
        result.obs["novelty"] = self._novelty_at(places)
        result.obs["support"] = 1.0 - result.obs["novelty"]
        result.uns = self._one_pass(seed, self._units)
        return result


def _write(obs: pd.DataFrame, column: str, table: pd.DataFrame) -> None:
    """Write a prediction: the label and its probability, or the number and its error."""
    if list(table.columns) == ["mean", "std"]:
        obs[column], obs[f"{column}_std"] = table["mean"].to_numpy(), table["std"].to_numpy()
        return
    values = table.to_numpy()
    codes = values.argmax(axis=1)
    obs[column] = pd.Categorical.from_codes(codes, categories=table.columns.astype(str))
    obs[f"{column}_probability"] = values.max(axis=1)
