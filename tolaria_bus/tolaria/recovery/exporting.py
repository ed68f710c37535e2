"""A checkpoint's model as a plain ``state_dict`` in a file of its own, for use elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tolaria_bus.tolaria.recovery.plain import plain_state_dict

PICKLED: Final = (".pt", ".pth")
SAFE: Final = ".safetensors"


class ExportRefused(ValueError):
    """The file can't be written as asked; one line says why."""


def check_target(path: Path, *, overwrite: bool) -> None:
    """See before the tensors are read whether the file can be written.

    Raises:
        ExportRefused: It can't.
    """
    if path.suffix not in (SAFE, *PICKLED):
        allowed = ", ".join((SAFE, *PICKLED))
        raise ExportRefused(f"{path}: the ending must be one of {allowed}")
    if not path.absolute().parent.is_dir():
        raise ExportRefused(f"{path}: the folder {path.absolute().parent} doesn't exist")
    if path.exists() and not overwrite:
        raise ExportRefused(f"{path}: is there already (--force writes over it)")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def export(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], about: Mapping[str, str]
) -> dict[str, Tensor]:
    """Write a model's ``state_dict``, whole or not at all.

    Args:
        path: ``.safetensors``: tied weights are written under each of their names. ``.pt`` and
            ``.pth``: by ``torch.save``, to be read with ``weights_only=True``.
        tensors: As of a checkpoint.
        meta: Likewise.
        about: Where it is from; goes into a safetensors file's metadata.

    Returns:
        What was written.

    Raises:
        ExportRefused: A tensor is of a kind that the format hasn't got.
        OSError: It can't be written.
    """
    found = plain_state_dict(tensors, meta)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix in PICKLED:
            # Copies: a tensor of the mapped file would bring all of it along.
            copies: dict[int, Tensor] = {}
            own = {name: copies.setdefault(id(t), t.clone()) for name, t in found.items()}
            torch.save(own, scratch)
        else:
            separate = {name: tensor.clone() for name, tensor in found.items()}
            save_file(separate, scratch, metadata={"format": "pt", **about})
            scratch.chmod(0o666 & ~_umask())  # The library lets nobody else read it.
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ExportRefused(f"{path}: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return found
