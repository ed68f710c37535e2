"""States to save, and how to tell that one came back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tolaria_bus.tolaria.recovery.checkpoints import CheckpointStore, checkpoint_name
from tolaria_bus.tolaria.recovery.tensor_bytes import tensor_bytes


def tensors(fill: float = 1.0) -> dict[str, Tensor]:
    """A small state that ``fill`` decides."""
    return {
        "model.weight": torch.full((40, 30), fill),
        "model.half": torch.full((7,), fill, dtype=torch.bfloat16),
        "random.torch": torch.arange(64, dtype=torch.uint8),
    }


def save(store: CheckpointStore, step: int, sequence: int | None = None, **options: Any) -> str:
    """Save the state of a step under its name."""
    name = checkpoint_name(step, 1, step if sequence is None else sequence)
    return store.save(name, tensors(step), {"step": step}, **options)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal bit for bit, in the same order, of the same dtypes and shapes."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert tensor_bytes(name, found[name]) == tensor_bytes(name, tensor), name


def flip(path: Path, place: int) -> None:
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))
