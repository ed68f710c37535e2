"""The manifest of a checkpoint: what its files must be, and the state that isn't tensors.

It is JSON for people and programs, with a SHA-256 over its own canonical form (sorted keys, no
spaces, without the field ``sha256``). JSON has no NaN, no infinities and, here, no integer beyond
64 bits; those of ``meta`` are written as ``{"$float": "nan"}`` and ``{"$int": "..."}`` and come
back as they were, and so does the order of keys. Tuples come back as lists.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from tolaria_bus.tolaria.recovery.tensor_file import TensorFile, entry_from_json

FORMAT = "tolaria-bus checkpoint"
VERSION = 1
_FLOAT, _INT = "$float", "$int"


class ManifestRefused(ValueError):
    """Bytes that aren't a sound manifest of this version.

    Attributes:
        reason: ``corrupt``, ``foreign`` or ``too_new``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        step: Optimizer steps done.
        timeline: On which timeline.
        sequence: The last journal record that the state contains.
        written_at_ns: Wall clock, for people only.
        file: The file of tensors.
        meta: The rest of the state: JSON values.
        sha256: Over all of that, in hex; empty before :func:`encode`.
    """

    step: int
    timeline: int
    sequence: int
    written_at_ns: int
    file: TensorFile
    meta: dict[str, Any]
    sha256: str = ""


def encode(manifest: Manifest) -> tuple[bytes, str]:
    """A manifest's bytes and its SHA-256 in hex.

    Raises:
        ValueError: ``meta`` holds something that JSON can't; the message says where.
    """
    body = {
        "format": FORMAT,
        "version": VERSION,
        "step": manifest.step,
        "timeline": manifest.timeline,
        "sequence": manifest.sequence,
        "written_at_ns": manifest.written_at_ns,
        "file": asdict(manifest.file),
        "meta": _pack(manifest.meta, "meta"),
    }
    try:
        sha256 = _sha256(body)
        whole = {**body, "sha256": sha256}
        return orjson.dumps(whole, option=orjson.OPT_INDENT_2), sha256
    except orjson.JSONEncodeError as error:
        raise ValueError(f"the manifest can't be written as JSON: {error}") from error


def decode(data: bytes) -> Manifest:
    """The manifest that these bytes are.

    Raises:
        ManifestRefused: They aren't a sound one, or of a newer version.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ManifestRefused("corrupt", f"the manifest isn't JSON: {error}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ManifestRefused("foreign", f"the manifest's format isn't {FORMAT!r}")
    version = body.get("version")
    if not isinstance(version, int):
        raise ManifestRefused("corrupt", f"the manifest's version is {version!r}")
    if version > VERSION:
        raise ManifestRefused("too_new", f"format version {version}; this program reads {VERSION}")
    sha256 = body.pop("sha256", None)
    if _sha256(body) != sha256:
        raise ManifestRefused("corrupt", "the manifest's SHA-256 is wrong")
    try:
        file = body["file"]
        return Manifest(
            step=body["step"],
            timeline=body["timeline"],
            sequence=body["sequence"],
            written_at_ns=body["written_at_ns"],
            file=TensorFile(
                bytes=file["bytes"],
                header_crc32c=file["header_crc32c"],
                tensors=tuple(entry_from_json(item) for item in file["tensors"]),
            ),
            meta=_unpack(body["meta"]),
            sha256=sha256,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestRefused("corrupt", f"the manifest has a wrong field: {error!r}") from error


def _sha256(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _pack(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 63 else {_INT: str(int(value))}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key in {_FLOAT, _INT}:
                raise ValueError(f"{where} has the key {key!r}: keys are strings other than $…")
        return {key: _pack(item, f"{where}.{key}") for key, item in value.items()}
    raise ValueError(f"{where} is a {type(value).__name__}: JSON has none")


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        if value.keys() == {_INT}:
            return int(value[_INT])
        return {key: _unpack(item) for key, item in value.items()}
    return value
