"""A task: the data, the question, and the choice of held-out conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from scvi_perturb._checks import checked
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.split.kinds import split
from scvi_perturb.data.split.record import SplitOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from scvi_perturb.data.split.kinds import Scenario
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures


@checked
@dataclass(frozen=True, kw_only=True)
class Task:
    """A prediction task on a screen, the same for every method.

    Parameters
    ----------
    name
        Name in code and files: letters, digits, "_" and "-".
    load
        Returns the screen. For several processes it holds no open file or lock, so that another
        process can call it.
    kind
        What is held out, see `scvi_perturb.data.split`.
    title, note
        For readers; the note says what the task can and cannot show.
    keys
        Where the screen says what was done to which cells, and holds its counts.
    values
        "counts": cells with raw counts and controls. "effects": each row is the change of a
        condition from its control (fold changes, signatures); means alone are judged.
    n_folds
        Number of folds; each holds out `1 / n_folds` of what can be held out.
    options
        What the kind of split asks for besides.
    fold_options
        Options of each fold, where folds differ in more than their number, such as the context
        that each holds out; overrules `n_folds` and `options`.
    features
        From the screen to what is known of its perturbations beforehand. It must not use
        expression: no method is given the screen itself.
    gene_names
        Column of `var` with the names by which perturbations call genes, where these are not the
        names of genes in the screen: a perturbation's own gene is left out of its score.
    max_cells
        At most this many cells of a held-out condition are predicted and compared.

    Raises
    ------
    ValueError
        If the name cannot be that of a file, or `values` is neither of both.
    """

    name: str
    load: Callable[[], AnnData]
    kind: Scenario
    title: str = ""
    note: str = ""
    keys: ScreenKeys = field(default_factory=ScreenKeys)
    values: Literal["counts", "effects"] = "counts"
    n_folds: int = 5
    options: SplitOptions = field(default_factory=SplitOptions)
    fold_options: tuple[SplitOptions, ...] = ()
    features: Callable[[AnnData], PerturbationFeatures] | None = None
    gene_names: str | None = None
    max_cells: int = 1000

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            msg = (
                f"Task name {self.name!r} must be of letters, digits, '_' and '-': it names files."
            )
            raise ValueError(msg)

    @property
    def folds(self) -> range:
        """Numbers of the folds."""
        return range(len(self.fold_options) or self.n_folds)

    def split(self, adata: AnnData, *, seed: int | None, fold: int) -> Split:
        """Return the split of a fold.

        Raises
        ------
        ValueError, SchemaError
            Naming the task: there is no such fold, or nothing can be held out.
        """
        if self.fold_options:
            options, part, fraction = self.fold_options[fold], 0, 1.0 / max(self.n_folds, 1)
        else:
            options, part, fraction = self.options, fold, 1.0 / self.n_folds
        try:
            return split(
                adata,
                self.kind,
                seed=seed,
                keys=self.keys,
                fraction=fraction,
                fold=part,
                options=options,
            )
        except ValueError as error:
            msg = f"Task {self.name!r}, fold {fold}: {error}"
            raise type(error)(msg) from None


def matrix_of(adata: AnnData, layer: str | None) -> Any:  # noqa: ANN401
    """Return the values of a screen, of `X` or of a layer, `(n_cells, n_genes)`."""
    return adata.X if layer is None else adata.layers[layer]
