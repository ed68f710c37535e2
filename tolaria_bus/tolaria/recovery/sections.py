"""Parts of a run's state that their owners know best: a mixed-precision scaler, a user's loader.

Each is a named section of a checkpoint with a version of its own. A checkpoint that is older than a
section leaves it as it is at the start of a run. What a section holds may be nested, with tensors
in it; :func:`pack` takes it apart into JSON values and tensors, and nothing is pickled.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TUPLE, _ITEMS, _BYTES, _TENSOR, _ARRAY = "$tuple", "$items", "$bytes", "$tensor", "$array"


@dataclass(frozen=True, slots=True)
class Section:
    """One owner's part of the state.

    Attributes:
        version: Of what ``save`` returns now; at least 1.
        save: Gives the state: ``None``, bools, numbers, strings, bytes, tensors, numpy arrays,
            and lists, tuples and dicts of those. Called at a fence. Tensors may be live ones.
        load: Takes back what ``save`` returned, and the version that it was of. Lists and dicts
            are its own; tensors are to be copied.
    """

    version: int
    save: Callable[[], Any]
    load: Callable[[Any, int], None]


def pack(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Take a nested state apart.

    Args:
        value: As :attr:`Section.save` may return it.
        name: Prefix of the tensors' names, and named in errors.

    Returns:
        JSON values, and the tensors that they refer to (not copied), by name.

    Raises:
        ValueError: There is something else in it; one line says where.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, name, tensors), tensors


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what :func:`pack` took apart.

    Raises:
        KeyError: A tensor is missing.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        match key:
            case "$tuple":
                return tuple(unpack(item, tensors) for item in inner)
            case "$items":
                return {unpack(k, tensors): unpack(v, tensors) for k, v in inner}
            case "$bytes":
                return base64.b64decode(inner)
            case "$tensor":
                return tensors[inner].clone()
            case "$array":
                return tensors[inner].clone().numpy()
    return {key: unpack(item, tensors) for key, item in value.items()}


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), where, tensors)
    if isinstance(value, Tensor):
        tensors[where] = value
        return {_TENSOR: where}
    if isinstance(value, np.ndarray):
        try:
            tensors[where] = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
        except TypeError as error:
            raise ValueError(f"{where} can't be saved: {error}") from None
        return {_ARRAY: where}
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{where}.{place}", tensors) for place, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(item, f"{where}.{key}", tensors) for key, item in value.items()}
        pairs = enumerate(value.items())
        return {
            _ITEMS: [
                [
                    _pack(key, f"{where}.key{place}", tensors),
                    _pack(item, f"{where}.{place}", tensors),
                ]
                for place, (key, item) in pairs
            ]
        }
    raise ValueError(f"{where} can't be saved: it is a {type(value).__name__}")
