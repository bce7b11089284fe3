"""What knowledge of a perturbation is worth: `python -m benchmarks.knowledge`.

Perturbations nobody measured, on four public screens: an unseen gene (Papalexi, MorPhiC) or drug
(LINCS, OP3). Each kind of knowledge alone, all together, and none (identity: a column for each
name), by the Gaussian process, the stack and kernel ridge; a perturbation of which the features say
nothing gets the mean of training. `--quick` takes one seed and two folds. An interrupted run goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import re
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anndata
import numpy as np
import pandas as pd

from benchmarks import _tasks
from benchmarks._kang_frame import data_directory
from scvi_perturb import predictors
from scvi_perturb.benchmark import Method, Study, Task, get_method, markdown_table, run
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import (
    PerturbationFeatures,
    from_signatures,
    gene_set_membership,
    molecular_descriptors,
    molecular_fingerprints,
    network_embedding,
    target_features,
    text_features,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

    from scvi_perturb.benchmark import Setting

    Modality = Callable[[AnnData], pd.DataFrame]

RESULTS: Final = Path(__file__).resolve().parent / "results"
OP3: Final = "op3_pbmc_drug_rank_signatures.h5ad"
TGGATES: Final = "tggates_human_hepatocytes.h5ad"
METRICS: Final = {"nmse": "error", "discrimination_centred": "discrimination, centred"}
TRIVIAL: Final = ("no_change", "context_mean")
QUICK_FOLDS: Final = 2


def _file(name: str) -> Path:
    return data_directory() / "features" / name


# Genes ----------------------------------------------------------------------------------------


def _named(adata: AnnData, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the perturbations of a screen, and the columns that tell any apart."""
    found = table.loc[table.index.isin(adata.obs["perturbation"].astype(str).unique())]
    return found.loc[:, (found != found.iloc[0]).any(axis=0)]


def gene_sets(adata: AnnData) -> pd.DataFrame:
    files = [_file(f"{name}.gmt.gz") for name in ("GO_Biological_Process_2021", "Reactome_2016")]
    files.append(_file("hallmark_v7.0.symbols.gmt"))
    genes = adata.obs["perturbation"].astype(str).unique()
    return _named(adata, gene_set_membership(files, genes, max_size=1000))


@cache
def _string() -> pd.DataFrame:
    return network_embedding(
        _file("string_human_top_decile.tsv.gz"), names=_file("ensembl_symbol_human.tsv.gz")
    )


def string(adata: AnnData) -> pd.DataFrame:
    return _named(adata, _string())


def regulons(adata: AnnData) -> pd.DataFrame:
    return _named(adata, network_embedding(_file("dorothea_human_abc.tsv.gz"), score="mor"))


def text(adata: AnnData) -> pd.DataFrame:
    return _named(adata, text_features(_file("gene_summaries_1915.json.gz")))


# Drugs ----------------------------------------------------------------------------------------


def _key(name: object) -> str:
    """Return a drug's name without what is written in several ways."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)", "", str(name).lower()))


@cache
def _lincs_obs() -> pd.DataFrame:
    return anndata.read_h5ad(data_directory() / _tasks.LINCS, backed="r").obs


def _names(adata: AnnData) -> dict[str, str]:
    """Return the perturbation of each drug's name, as `_key` writes it."""
    named = adata.obs["name"] if "name" in adata.obs else adata.obs["perturbation"]
    return dict(zip(map(_key, named), adata.obs["perturbation"].astype(str), strict=True))


def _by_name(adata: AnnData, table: pd.Series[Any] | pd.DataFrame) -> Any:  # noqa: ANN401
    """Return the rows of a table, index = a drug's name, under the names of the screen."""
    own = _names(adata)
    made = table.loc[[_key(name) in own for name in table.index]]
    made = made.set_axis(pd.Index([own[_key(name)] for name in made.index]), axis=0)
    return made[~made.index.duplicated()]


@cache
def _known_smiles() -> pd.Series[str]:
    """Return SMILES by drug name: those of LINCS, then those of sci-Plex."""
    lincs = _lincs_obs().set_index("name")["smiles"].astype(str)
    plex = pd.read_csv(_file("sciplex3_drugs_smiles_targets.csv")).set_index("name")["SMILES"]
    made = pd.concat([lincs[lincs.str.len() > 1], plex.dropna().astype(str)])
    made.index = made.index.map(str)
    return made[[name != "nan" for name in made.index]]


def _smiles(adata: AnnData) -> pd.Series[str]:
    if "smiles" in adata.obs:
        return adata.obs.set_index(adata.obs["perturbation"].astype(str))["smiles"].astype(str)
    return _by_name(adata, _known_smiles())


def morgan(adata: AnnData) -> pd.DataFrame:
    return molecular_fingerprints(_smiles(adata), "morgan", counts=True, invalid="skip")


def paths(adata: AnnData) -> pd.DataFrame:
    return molecular_fingerprints(_smiles(adata), "paths", counts=True, invalid="skip")


def maccs(adata: AnnData) -> pd.DataFrame:
    return molecular_fingerprints(_smiles(adata), "maccs", invalid="skip")


def descriptors(adata: AnnData) -> pd.DataFrame:
    return molecular_descriptors(_smiles(adata), invalid="skip")


@cache
def _bindings() -> pd.DataFrame:
    return pd.read_csv(_file("drugbank_bindings.tsv.gz"), sep="\t")


def _bound(adata: AnnData) -> pd.DataFrame:
    """Return pairs of perturbations of a screen and genes that they bind."""
    table = _bindings()
    drug = table["drugbank_id" if "name" in adata.obs else "drugbank_name"]
    if "name" not in adata.obs:
        drug = drug.map(lambda name: _names(adata).get(_key(name)))
    pairs = pd.DataFrame({"drug": drug, "target": table["gene_symbol"]}).dropna()
    return pairs[pairs["drug"].isin(adata.obs["perturbation"].astype(str))]


def targets(adata: AnnData) -> pd.DataFrame:
    return target_features(_bound(adata))


def target_network(adata: AnnData) -> pd.DataFrame:
    return target_features(_bound(adata), _string())


def other_screens(adata: AnnData) -> pd.DataFrame:
    """Responses in LINCS for drugs of other screens, and in Open TG-GATEs for those of LINCS."""
    if "smiles" not in adata.obs:
        other = anndata.read_h5ad(data_directory() / _tasks.LINCS)
        table = from_signatures(other, values="effects")
        names = _lincs_obs().set_index("perturbation")["name"].astype(str)
        return _by_name(adata, table.set_axis(pd.Index(names.loc[table.index]), axis=0))
    other = anndata.read_h5ad(data_directory() / TGGATES)
    return _by_name(adata, _tggates_responses(other))


def _tggates_responses(adata: AnnData) -> pd.DataFrame:
    """Return responses to the highest dose, against the controls of the same plate and time."""
    obs = adata.obs.reset_index(drop=True)
    plate = [obs["drug_of_plate"].astype(str), obs["time"]]
    values = pd.DataFrame(np.asarray(adata.X, float))
    is_control = (obs["dose_level"].astype(str) == "Control").to_numpy()
    base = values[is_control].groupby([one[is_control] for one in plate]).mean()
    high = (obs["dose_level"].astype(str) == "High").to_numpy()
    index = pd.MultiIndex.from_arrays([one[high] for one in plate])
    changes = values[high].to_numpy() - base.reindex(index).to_numpy()
    fine = np.isfinite(changes).all(axis=1)
    made = anndata.AnnData(changes[fine], obs=obs[high][fine][["perturbation"]].astype(str))
    made.obs_names = [f"tggates_{i}" for i in range(made.n_obs)]
    return from_signatures(made, values="effects")


# Tasks ----------------------------------------------------------------------------------------


_GENES: Final = {"gene_sets": gene_sets, "string": string, "regulons": regulons, "text": text}
_DRUGS: Final = {
    "morgan": morgan,
    "paths": paths,
    "maccs": maccs,
    "descriptors": descriptors,
    "targets": targets,
    "target_network": target_network,
    "other_screens": other_screens,
}


def load_op3() -> AnnData:
    """Return the drugs of which anything is known."""
    adata = anndata.read_h5ad(data_directory() / OP3)
    known = {*_by_name(adata, _known_smiles()).index, *_bound(adata)["drug"]}
    return adata[adata.obs["perturbation"].astype(str).isin(known)].copy()


def op3() -> Task:
    return Task(
        name="op3",
        title="OP3: a drug never seen",
        load=load_op3,
        kind="unseen_perturbation",
        keys=ScreenKeys(context=("cell_type",)),
        values="effects",
    )


SCREENS: Final = {
    "papalexi": _tasks.papalexi,
    "morphic": _tasks.morphic,
    "lincs": _tasks.lincs,
    "op3": op3,
}
_MODALITIES: Final = {"papalexi": _GENES, "morphic": _GENES, "lincs": _DRUGS, "op3": _DRUGS}


def identity(adata: AnnData) -> pd.DataFrame:
    """Return a column for each name: nothing is known."""
    names = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    return pd.DataFrame(np.eye(len(names)), index=names, columns=names)


def known(adata: AnnData, screen: str, modalities: tuple[str, ...]) -> PerturbationFeatures:
    """Return features of some modalities."""
    made = {"identity": identity} | _MODALITIES[screen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what names lack is in the report
        return PerturbationFeatures({name: made[name](adata) for name in modalities})


def studies(name: str, options: argparse.Namespace) -> Iterator[Study]:
    """Yield a study of names alone, with the trivial predictions, and one of what is known."""
    sets = {one: (one,) for one in ("identity", *_MODALITIES[name])}
    sets["fused"] = tuple(_MODALITIES[name])
    chosen = {key: own for key, own in sets.items() if key in (options.modalities or sets)}
    task = replace(SCREENS[name](), n_folds=options.folds)
    for named in (True, False):
        methods = [METHODS[one] for one in options.methods]
        tasks = [
            replace(
                task, name=f"{name}-{key}", features=partial(known, screen=name, modalities=own)
            )
            for key, own in chosen.items()
            if (key == "identity") is named
        ]
        if tasks:
            yield Study(
                tasks=tuple(tasks),
                methods=(*map(get_method, TRIVIAL), *methods) if named else tuple(methods),
                seeds=(0,) if options.quick else tuple(range(options.seeds)),
                max_folds=QUICK_FOLDS if options.quick else None,
            )


def _answering(setting: Setting, *, cls: str) -> Any:  # noqa: ANN401
    """Return a predictor that answers with the mean of training where features say nothing."""
    options: dict[str, Any] = {"profile": setting.profile}
    if cls == "StackedMean":
        options["seed"] = setting.seed
    made = getattr(predictors, cls)(setting.features, **options)
    over = "all" if setting.values == "effects" else "perturbations"
    return predictors.FirstKnown(made, predictors.ContextMean(over, profile=setting.profile))


METHODS: Final = {
    name: Method(
        name=name,
        make=partial(_answering, cls=cls),
        title=cls,
        values=("counts", "effects"),
        needs_features=True,
    )
    for name, cls in (
        ("gp", "ConditionGP"),
        ("stack", "StackedMean"),
        ("ridge", "KernelRidge"),
    )
}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run what is missing, print and write the table."""
    options = _parser().parse_args(arguments)
    frames = []
    for study in (study for name in options.screens for study in studies(name, options)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames.append(run(study, options.out / "knowledge", progress=_told).frame())
    table = tabulated(pd.concat(frames, ignore_index=True))
    rows = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
            for row in table.to_numpy().tolist()]  # fmt: skip
    text = markdown_table([*map(str, table)], rows)
    print(text)
    (options.out / "knowledge.md").write_text(f"# Knowledge\n\n{text}\n", encoding="utf-8")
    return table


def tabulated(frame: pd.DataFrame) -> pd.DataFrame:
    """Return error and discrimination of each kind of knowledge and method.

    Sums over conditions, averaged over seeds and folds; `se` is the standard error, over
    perturbations, of the difference from the best trivial prediction.
    """
    frame = frame[frame["metric"].isin(METRICS) & (frame["method"] != "replicate")]
    frame = frame.assign(
        screen=frame["task"].str.partition("-")[0], knowledge=frame["task"].str.partition("-")[2]
    )
    rows = []
    for screen, part in frame.groupby("screen", sort=False):
        for clear in (False, True) if (part["agreement"] >= _CLEAR).any() else (False,):
            chosen = part[part["agreement"] >= _CLEAR] if clear else part
            rows += _rows_of(f"{screen}, clear" if clear else str(screen), chosen)
    return pd.DataFrame(rows)


#: Agreement of two halves of the cells from which an effect is clear, as on the leaderboard.
_CLEAR: Final = 0.5


def _rows_of(screen: str, part: pd.DataFrame) -> list[dict[str, Any]]:
    error = part[part["metric"] == "nmse"]
    keys = ["knowledge", "method", "perturbation"]
    sums = error.groupby(keys)[["numerator", "denominator"]].sum()
    other = part[part["metric"] == "discrimination_centred"]
    told = other.groupby(keys[:2])[["numerator", "denominator"]].sum()
    trivial = sums.loc[("identity",) if "identity" in sums.index else sums.index[0][:1]]
    totals = {one: _ratio(trivial.loc[one]) for one in TRIVIAL}
    best = min(totals, key=lambda one: totals[one])
    rows = [{"screen": screen, "knowledge": "none", "method": get_method(best).title,
             "error": totals[best], "se": 0.0, METRICS["discrimination_centred"]: 0.5}]  # fmt: skip
    base = trivial.loc[best]
    for (knowledge, method), own in sums.groupby(level=[0, 1], sort=False):
        if method in TRIVIAL:
            continue
        found = told.loc[(knowledge, method)] if (knowledge, method) in told.index else None
        rows.append({
            "screen": screen, "knowledge": knowledge, "method": METHODS[method].title,
            "error": _ratio(own), "se": _error_of_difference(own.droplevel([0, 1]), base),
            METRICS["discrimination_centred"]: np.nan if found is None
            else float(found["numerator"] / found["denominator"]),
        })  # fmt: skip
    return rows


def _ratio(sums: pd.DataFrame) -> float:
    return float(sums["numerator"].sum() / sums["denominator"].sum())


def _error_of_difference(own: pd.DataFrame, base: pd.DataFrame) -> float:
    """Return the standard error of a difference of two ratios, by the jackknife."""
    both = own.join(base, rsuffix="_base").to_numpy(float)
    total = both.sum(axis=0)
    left = total - both
    values = left[:, 0] / left[:, 1] - left[:, 2] / left[:, 3]
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))


def _told(record: Any) -> None:  # noqa: ANN401
    seconds = sum(record.cost.get(f"{part}_seconds", 0.0) for part in ("train", "predict"))
    print(f"{record.task}, seed {record.seed}, fold {record.fold}: {record.method} "
          f"{record.status} ({seconds:.1f} s) {record.message[:120]}", flush=True)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.knowledge", description=__doc__)
    parser.add_argument("--screens", nargs="+", default=list(SCREENS), choices=SCREENS)
    parser.add_argument(
        "--methods", nargs="+", default=["gp", "ridge"], choices=METHODS,
        help="the stack takes half a minute a fold on MorPhiC and LINCS",
    )  # fmt: skip
    parser.add_argument("--modalities", nargs="+", help="some, `fused` and `identity` too")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--quick", action="store_true", help="one seed and two folds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser


if __name__ == "__main__":
    main()
