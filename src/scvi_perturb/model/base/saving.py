"""Folders of models: weights as safetensors, all else as JSON and arrays, with digests."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import safetensors.torch
from scvi.model.base import BaseModelClass

from scvi_perturb._checks import checked
from scvi_perturb._compat import forget_data, read_pickled_model, torch_device
from scvi_perturb._core import (
    SchemaError,
    warn,
)
from scvi_perturb._files import write_bytes, write_text, writing_folder
from scvi_perturb._state import pack, read_sealed, sealed, tensors_of, unpack
from scvi_perturb._version import __version__
from scvi_perturb.data.reader import read_screen

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData
    from mudata import MuData
    from scvi.module.base import BaseModuleClass

#: Version of what is written; a larger one is not read.
FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "weights.safetensors"
STATE: Final = "state.json"
ARRAYS: Final = "arrays.safetensors"
#: Data that are saved with a model, as scvi-tools names them.
ADATA: Final = "adata.h5ad"
MDATA: Final = "mdata.h5mu"
#: What scvi-tools, and this package before format 1, made of a model.
PICKLE: Final = "model.pt"
#: All of these.
MODEL_FILES: Final = {MANIFEST, WEIGHTS, STATE, ARRAYS, ADATA, MDATA, PICKLE}


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What a folder holds of a model.

    `model`: Name of its class. `version`: Of the package that wrote it. `attributes`: Those whose
    name ends in an underscore. `weights`: State of the module. `data`: File with its data, if they
    were saved too.
    """

    model: str
    version: str
    attributes: dict[str, Any]
    weights: dict[str, torch.Tensor] = field(repr=False)
    data: Path | None = None


def write_model(
    folder: str | os.PathLike[str],
    model: str,
    attributes: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    *,
    overwrite: bool,
    data: AnnData | MuData | None,
    in_use: str | os.PathLike[str] | None,
    write_options: Mapping[str, Any],
) -> None:
    """Write a folder that `read_model` reads, whole or not at all.

    `in_use` is the file that the data of the model are read from, if any.

    Files in the folder that are none of a model's stay.

    Raises `OSError`: If there is something that may not be replaced, or the folder cannot be
    written. Raises `TypeError`: If an attribute has no form without pickle.
    """
    if in_use is not None and Path(in_use).absolute().parent == Path(folder).absolute():
        msg = f"The data of this model are read from {in_use}; save it to another folder."
        raise ValueError(msg)
    text, arrays = pack(dict(attributes))
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    with writing_folder(folder, overwrite=overwrite, own=MODEL_FILES) as made:
        write_text(made / STATE, text)
        write_bytes(made / ARRAYS, safetensors.torch.save(arrays))
        write_bytes(made / WEIGHTS, safetensors.torch.save(plain))
        if data is not None:
            name = MDATA if hasattr(data, "mod") else ADATA
            data.write(made / name, **write_options)
        files = {path.name: file_digest(path) for path in sorted(made.iterdir())}
        manifest = {
            "format": FORMAT,
            "package": "scvi-perturb",
            "version": __version__,
            "model": model,
            "files": files,
        }
        write_text(made / MANIFEST, sealed(manifest))


def read_model(folder: str | os.PathLike[str], *, trust: bool = False) -> SavedModel:
    """Read the folder of a model, once its digests have been compared.

    Raises `FileNotFoundError`: If there is no such folder. Raises `SchemaError`: If a file is
    damaged, missing or too many, or was written by a later version. Raises `ValueError`: If the
    folder holds a pickle and `trust` is false.
    """
    where = Path(folder)
    if not where.is_dir():
        msg = f"There is no folder {where}; expected one that `save` of a model wrote."
        raise FileNotFoundError(msg)
    if not (where / MANIFEST).exists() and (where / PICKLE).exists():
        return _read_pickle(where, trust=trust)
    manifest = checked_manifest(where)
    arrays = tensors_of(_content(where, ARRAYS, manifest), where=where / ARRAYS)
    text = _content(where, STATE, manifest).decode("utf-8")
    attributes = unpack(text, arrays, where=where / STATE)
    if not isinstance(attributes, dict) or "registry_" not in attributes:
        msg = f"{where / STATE} does not hold the state of a model. Save the model anew."
        raise SchemaError(msg)
    return SavedModel(
        str(manifest["model"]),
        str(manifest["version"]),
        attributes,
        tensors_of(_content(where, WEIGHTS, manifest), where=where / WEIGHTS),
        next((where / name for name in (ADATA, MDATA) if name in manifest["files"]), None),
    )


def checked_manifest(where: Path) -> dict[str, Any]:
    """Return the manifest of a folder whose files are those that it lists, byte for byte."""
    if not (where / MANIFEST).is_file():
        msg = f"{where} has no {MANIFEST}: it is not a saved model, or the file was lost."
        raise SchemaError(msg)
    text = (where / MANIFEST).read_bytes().decode("utf-8", errors="replace")
    manifest = read_sealed(text, where=where / MANIFEST)
    found, files = manifest.get("format"), manifest.get("files")
    if not isinstance(found, int) or found > FORMAT:
        msg = (
            f"{where} was saved by scvi-perturb {manifest.get('version')} in format {found}; this "
            f"is {__version__}, which reads formats up to {FORMAT}. Install the later version."
        )
        raise SchemaError(msg)
    if not isinstance(files, dict) or not {STATE, ARRAYS, WEIGHTS} <= set(files) <= MODEL_FILES:
        msg = f"{where / MANIFEST} does not list the files of a model. Save the model anew."
        raise SchemaError(msg)
    there = {path.name for path in where.iterdir()} & MODEL_FILES - {MANIFEST}
    for what, names in (("is missing", set(files) - there), ("is too much", there - set(files))):
        if names:
            msg = (
                f"{where}: {', '.join(sorted(names))} {what}; the model was saved with "
                f"{', '.join(sorted(files))}. Restore the folder from a copy."
            )
            raise SchemaError(msg)
    for name, digest in files.items():
        if not (where / name).is_file() or file_digest(where / name) != digest:
            raise _damaged(where / name)
    return manifest


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(where: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file, compared once more: it may have been replaced meanwhile."""
    content = (where / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]:
        raise _damaged(where / name)
    return content


def _damaged(path: Path) -> SchemaError:
    return SchemaError(
        f"{path} is damaged: its digest is not the one that was saved with the model. Restore the "
        "folder from a copy."
    )


def _read_pickle(where: Path, *, trust: bool) -> SavedModel:
    if not trust:
        msg = (
            f"{where / PICKLE} is a pickle, as scvi-tools and older versions of this package "
            "write; reading it runs whatever code its writer put in. If you trust them, pass "
            "trust=True, then save the model anew."
        )
        raise ValueError(msg)
    model, attributes, weights = read_pickled_model(where)
    data = next((where / name for name in (ADATA, MDATA) if (where / name).exists()), None)
    return SavedModel(model, "before 0.1", attributes, weights, data)


def read_data(path: Path) -> AnnData | MuData:
    """Read the data that were saved with a model, or raise `SchemaError`."""
    if path.name == ADATA:
        return read_screen(path)
    import mudata

    try:
        return mudata.read(path)
    except Exception as error:  # mudata raises what HDF5, NumPy and pandas raise
        msg = f"{path} could not be read as .h5mu: {error}. Restore the folder from a copy."
        raise SchemaError(msg) from error


@checked
class SavingMixin(BaseModelClass):
    """`save`, `load` and `release`: a model in a folder, and without its data."""

    module: BaseModuleClass

    @abstractmethod
    def _plain_adata(self) -> AnnData:
        """Return the data of training, the named modality where they are MuData."""

    def save(
        self,
        dir_path: str | Path,
        *,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Save the model to a folder, without pickle; the folder appears when it is complete.

        Parameters
        ----------
        dir_path
            Folder to write.
        overwrite
            Whether the folder of a model may be replaced.
        save_anndata
            Whether the data of the model are saved with it.
        **anndata_write_kwargs
            For `adata.write`.

        Raises
        ------
        ValueError
            If there is something already that may not be replaced.
        TypeError
            If the model holds an object of a class that is not known to this package, such as a
            predictor of your own that is not registered; nothing is written then.
        """
        data = self.adata if save_anndata else None
        if save_anndata and data is None:
            msg = "The model has no data to save. Leave out save_anndata=True."
            raise SchemaError(msg)
        if anndata_write_kwargs and not save_anndata:
            msg = f"{sorted(anndata_write_kwargs)} are for `adata.write`, with save_anndata=True."
            raise TypeError(msg)
        attributes = {k: v for k, v in vars(self).items() if k.endswith("_") and k[0] != "_"}
        write_model(
            dir_path,
            type(self).__name__,
            attributes,
            self.module.state_dict(),
            overwrite=overwrite,
            data=data,
            in_use=None if self.adata is None else self._plain_adata().filename,
            write_options=anndata_write_kwargs,
        )

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | MuData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        *,
        trust: bool = False,
        allowed_classes_names_list: Sequence[str] = (),
    ) -> Self:
        """Load a model that was saved; its files are compared with their digests first.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            Data for the model, which need be neither registered nor those of training: labels that
            training had not are unknown, as to any model that is given new data. None takes what
            was saved with the model; False goes without.
        accelerator, device
            Where the model is put, as for scvi-tools.
        trust
            Whether a model that was saved by scvi-tools or an old version of this package, as a
            pickle, is read. This runs what code is in it.
        allowed_classes_names_list
            Names of classes, besides this one, whose files are taken.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        SchemaError
            If a file is damaged, missing, too many or of a later version, or the data lack a gene,
            layer or column.
        ValueError
            If the model is of another class, or a pickle that is not trusted.
        """
        saved = read_model(dir_path, trust=trust)
        if saved.model not in {cls.__name__, *allowed_classes_names_list}:
            msg = f"{dir_path} holds a model of class {saved.model}; use `{saved.model}.load`."
            raise ValueError(msg)
        if adata is None and saved.data is None:
            msg = f"{dir_path} holds no data, and none were given: the model is loaded without."
            warn(msg)
        if adata is None and saved.data is not None:
            adata = read_data(saved.data)
        model = cls._restored(saved)
        model.to_device(torch_device(accelerator, device))
        model.module.eval()
        if adata is not None and adata is not False:
            model._validate_anndata(adata)
        return model

    @classmethod
    def _restored(cls, saved: SavedModel) -> Self:
        """Return the model of a file, built for the labels that it was made with."""
        attributes = dict(saved.attributes)
        try:
            arguments = attributes.pop("init_params_")
            extra = [one for part in arguments["kwargs"].values() for one in part.items()]
            registry = attributes.pop("registry_")
            model = cls(None, registry=registry, **arguments["non_kwargs"], **dict(extra))
            for name, value in attributes.items():
                if name.endswith("_") and not name.startswith("_"):
                    setattr(model, name, value)
            model.module.on_load(model, pyro_param_store=None)
            model.module.load_state_dict(saved.weights)
        except Exception as error:  # whatever files that were made up lead to
            msg = (
                f"A {cls.__name__} cannot be built from what was saved by scvi-perturb "
                f"{saved.version}: {str(error)[:300]}"
            )
            raise SchemaError(msg) from error
        return model

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """Return how the data of a saved model were registered."""
        del prefix
        registry: dict[str, Any] = read_model(dir_path).attributes["registry_"]
        return registry

    def release(self) -> None:
        """Let go of the data: the model stays as one that was loaded without data.

        scvi-tools keeps what was set up, and what was passed to a verb, by the class of the model
        for as long as the process lives. What this model was given is freed, unless something
        else holds it; `with model:` does so at the end of the block. To make another model of the
        same data, call :meth:`setup_anndata` again.
        """
        forget_data(self)

    def __enter__(self) -> Self:
        """Return the model, whose data are released at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the data; see :meth:`release`."""
        self.release()
