"""Features from text: what is written about a gene or a drug."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, drawn_seed, warn
from scvi_perturb._files import read_json
from scvi_perturb.features.genes import PROVENANCE, listed
from scvi_perturb.features.sources import read_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Length of a vector, 1 before components are left out, below which a text has none of these.
_NOTHING: Final = 1e-6


@checked
def text_features(
    texts: Mapping[str, Any] | pd.Series[Any] | str | Path,
    *,
    model: str | None = None,
    n_components: int = 64,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Return vectors of texts, near each other where texts say alike things.

    Without a model, words and pairs of words are counted, weighted by how rare they are (TF-IDF),
    and the leading components of the counts are kept (latent semantic analysis). These vectors
    depend on all texts given: make one table of all names that will be compared.

    Parameters
    ----------
    texts
        A text for each name, such as a gene's summary: a mapping, a Series, a file of JSON with
        such a mapping, or a text table whose first two columns are name and text; both plain or
        gzipped.
    model
        Name or folder of a model of sentence-transformers, which is then used instead. Needs the
        extra `text`.
    n_components
        Without a model, the length of vectors; less where there are fewer texts or words.
    seed
        Without a model, the seed of the decomposition.

    Returns
    -------
    A table `(n_names, n_components)`, index = name, rows of length 1: a modality of
    :class:`PerturbationFeatures`. A name whose text is missing or has no word that counts has no
    row; a warning names those.

    Raises
    ------
    SchemaError
        If there are fewer than two texts, or no word is in two of them.
    ImportError
        If a model is asked for and sentence-transformers is not installed.

    References
    ----------
    Deerwester et al., Indexing by latent semantic analysis, JASIS 1990; Reimers and Gurevych,
    Sentence-BERT, EMNLP 2019; Chen and Zou, Simple and effective embedding model for single-cell
    biology built from ChatGPT, Nature Biomedical Engineering 2025.

    Examples
    --------
    >>> texts = {
    ...     "JAK2": "kinase of cytokine receptors",
    ...     "STAT1": "bound by cytokine receptors",
    ...     "MYC": "binds DNA in the cycle",
    ...     "E2F1": "binds DNA of genes of the cycle",
    ... }
    >>> text_features(texts, n_components=2).index.tolist()
    ['JAK2', 'STAT1', 'MYC', 'E2F1']
    """
    given = _read_texts(texts)
    kept = {name: text for name, text in given.items() if text}
    if len(kept) < 2:
        msg = f"There are {len(kept)} texts that are not empty; expected two or more, by name."
        raise SchemaError(msg)
    if model is None:
        made = _latent_semantic(list(kept.values()), n_components, drawn_seed(seed))
    else:
        made = _sentences(list(kept.values()), model)
    length = np.linalg.norm(made, axis=1, keepdims=True)
    said = length[:, 0] > _NOTHING
    lost = sorted({*given} - {name for name, ok in zip(kept, said, strict=True) if ok})
    if lost:
        warn(f"{len(lost)} of {len(given)} names have no text with a word that counts and get no "
             f"row: {listed(lost)}.")  # fmt: skip
    table = pd.DataFrame(
        made[said] / length[said],
        index=pd.Index([name for name, ok in zip(kept, said, strict=True) if ok]),
        columns=[f"text_{i}" for i in range(made.shape[1])],
    )
    table.attrs[PROVENANCE] = {
        "made_by": "text_features", "model": model or "tf-idf", "n_texts": len(table),
        "source": Path(texts).name if isinstance(texts, str | Path) else "texts",
    }  # fmt: skip
    return table


def _read_texts(texts: Mapping[str, Any] | pd.Series[Any] | str | Path) -> dict[str, str]:
    """Return stripped texts by name; "" where a text is missing."""
    if isinstance(texts, str | Path):
        if Path(texts).name.lower().removesuffix(".gz").endswith(".json"):
            texts = read_json(texts, kind="a file of texts by name")
        else:
            table = read_columns(Path(texts))
            texts = pd.Series(table.iloc[:, 1].to_numpy(), index=table.iloc[:, 0])
    if not isinstance(texts, Mapping | pd.Series):
        msg = f"Expected a text for each name, found a {type(texts).__name__}."
        raise SchemaError(msg)
    given = pd.Series(texts, dtype=object)
    given = given.where(given.notna(), None)
    twice = sorted(set(map(str, given.index[given.index.duplicated()])))
    wrong = [str(name) for name, one in given.items() if not isinstance(one, str | None)]
    if twice or wrong:
        fault = f"Names come twice: {listed(twice)}" if twice else f"Not text: {listed(wrong)}"
        msg = f"{fault}; expected one text for each name."
        raise SchemaError(msg)
    return {str(name): one.strip() if isinstance(one, str) else "" for name, one in given.items()}


def _latent_semantic(texts: list[str], n_components: int, seed: int) -> NDArray[np.float64]:
    """Return the leading components of weighted word counts, `(n_texts, k)`."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        sublinear_tf=True, stop_words="english", ngram_range=(1, 2), min_df=2, max_df=0.9
    )
    try:
        counts = words.fit_transform(texts)
    except ValueError as error:  # no word is left
        msg = f"No word counts: each is in a single text or in nearly all ({error})."
        raise SchemaError(msg) from error
    k = min(n_components, min(counts.shape) - 1)
    if k < 1:
        return np.asarray(counts.toarray(), np.float64)
    svd = TruncatedSVD(k, n_iter=10, random_state=seed)
    return np.asarray(svd.fit_transform(counts), np.float64)


def _sentences(texts: list[str], model: str) -> NDArray[np.float64]:
    """Return the vectors of a sentence model, `(n_texts, d)`."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        msg = (
            "Sentence models need sentence-transformers, which is not installed. Install the "
            "extra: `pip install 'scvi-perturb[text]'`, or leave out `model`."
        )
        raise ImportError(msg) from error
    return np.asarray(SentenceTransformer(model).encode(texts, show_progress_bar=False), np.float64)
