"""The global generators, of Python, numpy, torch and CUDA, as a part of a run's state."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def save_generators() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Their state: tensors by name (``random.*``), and the rest, JSON-able."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors = {
        "random.torch": torch.get_rng_state(),
        "random.numpy": torch.from_numpy(np.asarray(keys, dtype=np.uint32).view(np.int32)),
        "random.python": torch.from_numpy(np.array(words, dtype=np.int64)),
    }
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    for index in range(torch.cuda.device_count() if in_use else 0):
        tensors[f"random.cuda.{index}"] = torch.cuda.get_rng_state(index)
    meta = {
        "python": [version, gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
    }
    return tensors, meta


def restore_generators(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Bring back what :func:`save_generators` gave. CUDA devices that aren't here are left out."""
    torch.set_rng_state(tensors["random.torch"].clone())
    version, gauss = meta["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))
    kind, position, has_gauss, cached = meta["numpy"]
    keys = tensors["random.numpy"].numpy().view(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))  # noqa: NPY002
    for name, tensor in tensors.items():
        if name.startswith("random.cuda."):
            index = int(name.rpartition(".")[2])
            if index < torch.cuda.device_count():
                torch.cuda.set_rng_state(tensor.clone(), index)
