"""Write a screen as shards, with progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import Progress

from scvi_perturb._core import SchemaError
from scvi_perturb.cli._app import ShardOptions, UsageError
from scvi_perturb.cli._screen import say
from scvi_perturb.data.reader import open_backed
from scvi_perturb.data.shards import write_shards

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

#: What is not written beside obs, var, uns and the counts.
_LEFT_OUT = ("layers", "obsm", "obsp", "varm", "varp")


def run_shard(file: Path, out: Path, options: ShardOptions, console: Console) -> None:
    """Write the shards, and say what was left out."""
    adata = open_backed(file)
    left = {name: [key for key in getattr(adata, name) if key is not None] for name in _LEFT_OUT}
    left["layers"] = [name for name in left["layers"] if name != options.layer]
    if options.layer is not None and adata.X is not None:
        left["X"] = ["X"]
    if adata.raw is not None:
        left["raw"] = ["raw"]
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("cells", total=adata.n_obs)
        try:
            write_shards(
                adata,
                out,
                layer=options.layer,
                shuffle=not options.in_order,
                buffer=options.buffer,
                seed=options.seed,
                overwrite=options.overwrite,
                progress=lambda n: bars.update(task, completed=n),
            )
        except SchemaError:
            raise
        except ValueError as error:  # a folder that is there
            raise UsageError(str(error)) from error
    say(console, f"{adata.n_obs:,} cells x {adata.n_vars:,} genes in {out}")
    if names := [name for some in left.values() for name in some]:
        say(console, f"left out: {', '.join(names)}")
