"""Tensors in a file of the safetensors format, each with a CRC32C.

The file is written here rather than by the safetensors library, which reads it: in one pass, in
pieces, the checksums come with the writing, the interpreter is given up at each piece so that a
training thread isn't held, errors are the system's own, and tensors may share memory. The format
is public: an 8-byte length, a JSON header padded to 8 bytes, then the data without holes.

A dtype that the format hasn't got, or not in its first versions (complex, packed 4-bit floats), is
stored as bytes; its name is in the entry.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tolaria_bus.tolaria.recovery.disk_helper import Disk, Here
from tolaria_bus.tolaria.recovery.tensor_bytes import check_plain, dtype_name, dtype_of

_CODES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What every reader of the format knows; the codes that came later are left to it."""


class TensorsDamaged(ValueError):
    """A file of tensors isn't what was written.

    Attributes:
        reason: ``torn`` (it ends too early) or ``corrupt``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        name: Its name.
        dtype: Torch's name of its dtype.
        shape: Its shape.
        offset: Where its bytes begin in the file.
        bytes: How many they are.
        crc32c: Of its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file of tensors must be: its size, its header's CRC32C, its tensors in order."""

    bytes: int
    header_crc32c: int
    tensors: tuple[TensorEntry, ...]


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    disk: Disk = Here(),  # noqa: B008 - has no state
) -> TensorFile:
    """Write a new file of tensors and make its contents durable (``fsync``).

    Args:
        path: Where; nothing may be there.
        tensors: Of any dtype and stride, on any device. They must not change meanwhile.
        disk: Does the writing.

    Raises:
        ValueError: A tensor can't be stored (sparse, quantised, meta), or has a reserved name.
        OSError: The file can't be written: disk full, for one.
    """
    names = sorted(tensors, key=lambda name: -_alignment(tensors[name]))
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if name == "__metadata__":
            raise ValueError(f"tensor {name!r}: the format keeps this name for itself")
        check_plain(name, tensor)
        size = tensor.numel() * tensor.element_size()
        code = _CODES.get(tensor.dtype)
        header[name] = {
            "dtype": code or "U8",
            "shape": list(tensor.shape) if code else [size],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        sums = disk.write(fd, head, [(name, tensors[name]) for name in names])
    finally:
        os.close(fd)
    entries = {}
    for name, crc in zip(names, sums, strict=True):
        begin, end = header[name]["data_offsets"]
        entries[name] = TensorEntry(
            name=name,
            dtype=dtype_name(tensors[name].dtype),
            shape=tuple(tensors[name].shape),
            offset=len(head) + begin,
            bytes=end - begin,
            crc32c=crc,
        )
    return TensorFile(
        bytes=len(head) + offset,
        header_crc32c=google_crc32c.value(head),
        tensors=tuple(entries[name] for name in tensors),
    )


def check_tensors(
    path: Path,
    expected: TensorFile,
    disk: Disk = Here(),  # noqa: B008 - has no state
) -> None:
    """Read a file and compare every byte of it, by CRC32C, with what was written.

    Args:
        path: The file.
        expected: What was written.
        disk: Does the reading.

    Raises:
        TensorsDamaged: It isn't the same.
        OSError: It can't be read.
    """
    check_size(path, expected)
    entries = sorted(expected.tensors, key=lambda item: (item.offset, item.bytes))
    end = begin = min((entry.offset for entry in entries), default=expected.bytes)
    for entry in entries:
        if entry.offset != end:
            raise TensorsDamaged("corrupt", f"tensor {entry.name!r}: a hole before it")
        end += entry.bytes
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head, *sums = disk.sum(fd, [begin, *(entry.bytes for entry in entries)])
    except EOFError as error:
        raise TensorsDamaged("torn", str(error)) from None
    finally:
        os.close(fd)
    if head != expected.header_crc32c:
        raise TensorsDamaged("corrupt", f"{path.name}: the header's CRC32C is wrong")
    for entry, found in zip(entries, sums, strict=True):
        if found != entry.crc32c:
            raise TensorsDamaged("corrupt", f"tensor {entry.name!r}: its CRC32C is wrong")


def check_size(path: Path, expected: TensorFile) -> None:
    """Compare a file's size alone.

    Raises:
        TensorsDamaged: It has another size, or isn't there.
        OSError: It can't be looked at.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise TensorsDamaged("torn", f"{path.name} is missing") from None
    if size != expected.bytes:
        reason = "torn" if size < expected.bytes else "corrupt"
        raise TensorsDamaged(reason, f"{path.name} has {size} bytes of {expected.bytes}")


def map_tensors(path: Path, expected: TensorFile) -> dict[str, Tensor]:
    """The tensors of a file that was checked, mapped into memory: nothing is read before use.

    Each is private: writing to one changes neither the file nor another mapping. They lie at any
    address, while some kernels' results depend on alignment; so copy them into tensors that torch
    made rather than compute with them.

    Raises:
        TensorsDamaged: The file's header and ``expected`` don't agree.
        OSError: The file can't be read.
    """
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise TensorsDamaged("corrupt", f"{path.name}: {error}") from error
    tensors = {}
    for entry in expected.tensors:
        tensor = stored.get(entry.name)
        dtype = dtype_of(entry.dtype)
        if tensor is not None and tensor.dtype != dtype and tensor.dtype == torch.uint8:
            # A copy, since a view needs an address that the wider dtype can have.
            tensor = tensor.clone().view(dtype).reshape(entry.shape)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != entry.shape:
            raise TensorsDamaged("corrupt", f"tensor {entry.name!r}: the file has another one")
        tensors[entry.name] = tensor
    return tensors


def entry_from_json(item: Mapping[str, Any]) -> TensorEntry:
    """An entry as a manifest has it.

    Raises:
        KeyError, TypeError, ValueError: A field is missing or wrong.
    """
    entry = TensorEntry(
        name=str(item["name"]),
        dtype=str(item["dtype"]),
        shape=tuple(int(size) for size in item["shape"]),
        offset=int(item["offset"]),
        bytes=int(item["bytes"]),
        crc32c=int(item["crc32c"]),
    )
    if entry.bytes != math.prod(entry.shape) * dtype_of(entry.dtype).itemsize:
        raise ValueError(f"tensor {entry.name!r}: {entry.bytes} bytes don't make its shape")
    return entry


def _alignment(tensor: Tensor) -> int:
    return tensor.element_size() if tensor.dtype in _CODES else 1
