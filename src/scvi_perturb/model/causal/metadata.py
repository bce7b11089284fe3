"""Metadata to expression and back, and likelihoods of given cells, of `CausalPerturbVAE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
import pandas as pd
import torch

from scvi_perturb._checks import checked
from scvi_perturb._core import (
    Key,
    SchemaError,
    generator,
    warn,
)
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.base.draw import Drawn
from scvi_perturb.model.base.latents import chunks
from scvi_perturb.model.base.model import PerturbationModel
from scvi_perturb.model.causal.draw import control_tensors, encode_data
from scvi_perturb.model.causal.setup import label_levels, perturbation_labels
from scvi_perturb.module.causal import perturbation_inputs
from scvi_perturb.nn.metadata import gaussian_log_prob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData
    from torch import Tensor

    from scvi_perturb.data.screen import Screen
    from scvi_perturb.model.base.draw import LibrarySize
    from scvi_perturb.model.causal.draw import CellLatents, EncodedCells
    from scvi_perturb.model.causal.setup import MetadataRows
    from scvi_perturb.module.base import ConditionTensors
    from scvi_perturb.module.causal import CausalModule, GroupedAutoencoder
    from scvi_perturb.nn.metadata import MetadataHead, MetadataSpec


@checked
class MetadataMixin(PerturbationModel):
    """`predict_metadata`, `log_likelihood_bound`, `anomaly_scores` of given cells."""

    module: CausalModule

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
        self._check_trained()
        given = encode_data(
            self.module.representation,
            self._vocabulary,
            self._manager(adata),
            indices,
            key_added,
            with_conditions=False,
        )
        heads = _field_heads(self.module, self._screen)
        chosen = list(heads) if fields is None else list(fields)
        wrong = sorted(set(chosen) - set(heads))
        if wrong:
            msg = f"Fields {wrong} cannot be predicted; the model predicts {sorted(heads)}."
            raise SchemaError(msg)
        found = {}
        for field in chosen:
            random = generator(seed, self._device())
            table = _predict_field(self.module, heads[field], given.latents, random)
            found[field] = table.set_axis(given.names, axis=0)
        if key_added is not None:
            obs = (self.adata if adata is None else adata).obs
            for field, table in found.items():
                _write_prediction(obs, f"{key_added}_{field}", table)
        return found

    @docs.dedent
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
        %(cells)s
        n_samples
            Latents a cell, K; None takes 32.
        seed
            Seed of the draws.
        key_added
            Column of `obs` to write to as well; needs `indices=None`.

        Returns
        -------
        numpy.ndarray
            `(n_cells,)`, nats.

        Raises
        ------
        %(raises_cells)s
        ValueError
            For `n_samples` below 1, or `indices` with `key_added`.

        References
        ----------
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        self._check_trained()
        network = self.module.representation
        given = encode_data(network, self._vocabulary, self._manager(adata), indices, key_added)
        n_draws = 32 if n_samples is None else n_samples
        values = _likelihood_bound(network, given, given.conditions, n_draws, seed)
        if key_added is not None:
            (self.adata if adata is None else adata).obs[key_added] = values
        return values

    @docs.dedent
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
        %(cells)s
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
        %(raises_cells)s
        ValueError
            For `n_samples` below 1, or `indices` with `key_added`.
        """
        self._check_trained()
        network = self.module.representation
        given = encode_data(network, self._vocabulary, self._manager(adata), indices, key_added)
        with torch.inference_mode():
            mean = given.latents.mean.to(self._device())
            fields = given.latents.fields_of(np.arange(len(given)), mean.device)
            at_mean = network.prior_log_prob(mean, fields, given.conditions)
        control = control_tensors(network, len(given))
        own, under = (
            _likelihood_bound(network, given, conditions, n_samples, seed)
            for conditions in (given.conditions, control)
        )
        ratio = np.where(given.codes[Key.CONDITION] == 0, 0.0, under - own)
        table = pd.DataFrame(
            {"surprise": -at_mean.cpu().numpy(), "control_ratio": ratio}, index=given.names
        )
        if key_added is not None:
            obs = (self.adata if adata is None else adata).obs
            for name in table:
                obs[f"{key_added}_{name}"] = table[name].to_numpy()
        return table


#: Cells whose likelihood is computed at once.
_CELLS_AT_ONCE: Final = 512


@torch.inference_mode()
def _likelihood_bound(
    network: GroupedAutoencoder,
    given: EncodedCells,
    conditions: ConditionTensors,
    n_samples: int,
    seed: int | None,
) -> np.ndarray:
    """Return the importance-weighted bound of given cells under conditions, `(n_cells,)`."""
    device = network.profile.device
    # The same noise for all cells: what a cell gets does not depend on the others.
    shape = (n_samples, 1, network.n_latent)
    noises = torch.randn(shape, generator=generator(seed, device), device=device)
    values = np.zeros(len(given))
    for rows in chunks(len(given), _CELLS_AT_ONCE):
        at = torch.from_numpy(rows)
        batch = {k: v.to(device) for k, v in given.reader[given.rows[rows]].items()}
        posterior = [
            network.learned_groups(x[at].to(device))
            for x in (given.latents.mean, given.latents.log_variance)
        ]
        own, fields = conditions.rows(at.to(device)), given.latents.fields_of(rows, device)
        weights = []
        for noise in noises:
            latent = given.latents.at(rows, noise)
            parameters = network.decode(latent, batch[Key.LIBRARY], None, own)
            drawn = network.learned_groups(latent)
            proposal = sum(
                gaussian_log_prob(*group) for group in zip(drawn, *posterior, strict=True)
            )
            prior = network.prior_log_prob(latent, fields, own)
            weights.append(network.log_prob(batch, parameters) + prior - proposal)
        bound = torch.logsumexp(torch.stack(weights).double(), dim=0) - np.log(n_samples)
        values[rows] = bound.cpu().numpy()
    return values


#: Draws of the latent over which predictions of metadata are averaged.
N_DRAWS: Final = 8


class FieldHead(NamedTuple):
    """The head that predicts a field: its name, the group it reads, the column and its labels."""

    name: str
    group: str
    spec: MetadataSpec
    labels: tuple[str, ...] | None


def _field_heads(module: CausalModule, screen: Screen) -> dict[str, FieldHead]:
    """Return the head of each field."""
    levels, found = label_levels(screen), {}
    for group in ("identity", "technical"):
        for i, spec in enumerate(module.representation.prior_of(group).metadata.specs):
            name = f"{group}_{i}"
            if name in module.heads:
                found[spec.name] = FieldHead(name, group, spec, levels[spec.name])
    if "perturbation" in module.heads:
        spec = cast("MetadataHead", module.heads["perturbation"]).spec
        labels = tuple(perturbation_labels(screen)[0])
        found[screen.keys.perturbation] = FieldHead("perturbation", "state", spec, labels)
    return found


@torch.inference_mode()
def _predict_field(
    module: CausalModule, head: FieldHead, latents: CellLatents, random: torch.Generator
) -> pd.DataFrame:
    """Return the prediction of one field, averaged over draws of the latent."""
    network, spec, blocks = module.representation, head.spec, []
    for rows in chunks(len(latents.mean)):
        outputs = []
        for _ in range(N_DRAWS):
            drawn = network.learned_groups(latents.draw(rows, random))
            of_state = head.group == "state"
            own = perturbation_inputs(drawn) if of_state else getattr(drawn, head.group)
            outputs.append(module.heads[head.name](own))
        each = torch.stack(outputs)
        if not spec.is_numeric:
            blocks.append(each.softmax(-1).mean(0).cpu().numpy())
            continue
        mean, log_sd = each[..., 0], each[..., 1].clamp(-4.0, 2.0)
        variance = mean.var(0) + (2 * log_sd).exp().mean(0)
        blocks.append(torch.stack([mean.mean(0), variance.sqrt()], 1).cpu().numpy())
    values = np.concatenate(blocks)
    if head.labels is not None:
        return pd.DataFrame(values, columns=pd.Index(head.labels, name=spec.name))
    metadata = network.prior_of(head.group).metadata
    centre, scale = map(float, metadata.moments_of(metadata.specs.index(spec)))
    return pd.DataFrame({"mean": centre + scale * values[:, 0], "std": scale * values[:, 1]})


def _write_prediction(obs: pd.DataFrame, column: str, table: pd.DataFrame) -> None:
    """Write a prediction: the label and its probability, or the number and its error."""
    if list(table.columns) == ["mean", "std"]:
        obs[column], obs[f"{column}_std"] = table["mean"].to_numpy(), table["std"].to_numpy()
        return
    values = table.to_numpy()
    codes = values.argmax(axis=1)
    obs[column] = pd.Categorical.from_codes(codes, categories=table.columns.astype(str))
    obs[f"{column}_probability"] = values.max(axis=1)


def draw_metadata(
    network: GroupedAutoencoder,
    rows: MetadataRows,
    conditions: ConditionTensors,
    *,
    which: np.ndarray,
    library: np.ndarray,
    seed: int | None,
) -> Iterator[Drawn]:
    """Yield cells of rows of metadata under their conditions, `which` row each."""
    device = network.profile.device
    random, fields = generator(seed, device), row_fields(network, rows)
    for chunk in chunks(len(which)):
        at = torch.from_numpy(which[chunk]).to(device)
        own = {name: values[at] for name, values in fields.items()}
        asked = conditions.rows(at)
        with torch.inference_mode():
            latent = network.draw_prior(own, len(chunk), random, conditions=asked)
            size = torch.from_numpy(library[chunk].astype(np.float32)).to(device)
            yield Drawn(chunk, size, network.decode(latent, size, None, asked))


def row_fields(network: GroupedAutoencoder, rows: MetadataRows) -> dict[str, Tensor]:
    """Return the metadata of rows on the network's device."""
    names = (*network.columns["identity"], *network.columns["technical"])
    return {n: torch.from_numpy(rows.fields[n]).to(network.profile.device) for n in names}


def warn_untrained_labels(network: GroupedAutoencoder, rows: MetadataRows) -> None:
    """Warn of labels that no training cell has: they count as missing."""
    for prior in (network.identity_prior, network.technical_prior):
        for i, spec in enumerate(prior.metadata.specs):
            if spec.is_numeric:
                continue
            values = torch.from_numpy(rows.fields[spec.name])
            trained = prior.metadata.present(i, values.to(network.profile.device)).cpu()
            lost = ((values >= 0) & ~trained).numpy()
            if lost.any():
                labels = sorted(set(rows.frame.loc[lost, spec.name].astype(str)))
                msg = (
                    f"No training cell has {spec.name} {labels}. The "
                    "cells are drawn as of a label that is not known, which is wider."
                )
                warn(msg)


def batch_depths(library: np.ndarray, batch: np.ndarray, n_batches: int) -> dict[str, np.ndarray]:
    """Return the mean log library size of each batch, of all last, and the spread around each."""
    depth = np.log(np.maximum(library.astype(float), 1.0))
    overall = depth.mean()
    means = [
        depth[batch == code].mean() if (batch == code).any() else overall
        for code in range(n_batches)
    ]
    away = depth - np.array(means)[batch]
    return {
        "mean": np.array([*means, overall]),
        "std": np.array([away.std(), depth.std()]),
    }


def metadata_library(
    batch: np.ndarray,
    shift: np.ndarray,
    depths: dict[str, np.ndarray],
    *,
    library_size: LibrarySize,
    seed: int | None,
) -> np.ndarray:
    """Return the library size of each cell: drawn as in training, or the number given.

    `shift` is the mean change of the log library size under each cell's condition.
    """
    if not isinstance(library_size, str):
        return np.full(len(batch), float(library_size))
    if library_size not in ("reference", "predicted"):
        msg = f"library_size={library_size!r}; expected 'reference', 'predicted' or a number."
        raise ValueError(msg)
    std = depths["std"][(batch < 0).astype(int)]
    size = depths["mean"][batch] + std * np.random.default_rng(seed).standard_normal(len(batch))
    return np.exp(size + shift if library_size == "predicted" else size)
