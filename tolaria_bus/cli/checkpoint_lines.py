"""One checkpoint as a line, as a page, or as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import orjson

from tolaria_bus.cli.amounts import size
from tolaria_bus.cli.render import local_time
from tolaria_bus.cli.style import Part, paint
from tolaria_bus.tolaria.recovery.checkpoint_view import SeenCheckpoint
from tolaria_bus.tolaria.recovery.manifest import Manifest
from tolaria_bus.tolaria.recovery.tensor_file import TensorEntry

_NAME_WIDTH: Final = 14
_MOST_TENSORS: Final = 40
"""Tensors that a page names; JSON has them all."""


def line(seen: SeenCheckpoint) -> list[Part]:
    """Parts of a line: name, when, epoch, size, and what is special about it."""
    parts = _head(seen)
    if seen.info is None or seen.manifest is None:
        return parts
    info = seen.info
    return [
        *parts,
        (local_time(seen.manifest.written_at_ns / 1e9), "dim"),
        (f"epoch {info.epoch}", "plain"),
        (size(info.bytes), "plain"),
        (info.label, "note"),
        ("pinned" if info.pinned else "", "note"),
    ]


def verdict(seen: SeenCheckpoint) -> list[Part]:
    """Parts of a line: the name, and whether every byte is as it was written."""
    if seen.problem or seen.manifest is None:
        return _head(seen)
    count = len(seen.manifest.file.tensors)
    told = f"{count} tensors, {size(seen.manifest.file.bytes)}"
    return [*_head(seen), ("good:", "good"), (told, "plain")]


def page(seen: SeenCheckpoint, *, colour: bool) -> Iterator[str]:
    """Lines that tell what is in a checkpoint with a sound manifest."""
    manifest = seen.manifest
    assert manifest is not None
    yield paint(_head(seen), colour=colour)
    for name, value in _told(manifest):
        if value:
            yield paint([(f"{name:<{_NAME_WIDTH}}", "dim"), (value, "plain")], colour=colour)
    model = _model(manifest)
    for entry in model[:_MOST_TENSORS]:
        told = (f"{entry.dtype} {list(entry.shape)}", "plain")
        yield "  " + paint([(_short(entry), "name"), told], colour=colour)  # type: ignore[list-item]
    if len(model) > _MOST_TENSORS:
        yield f"  and {len(model) - _MOST_TENSORS} more (--json has them all)"


def as_json(seen: SeenCheckpoint, *, whole: bool = False) -> str:
    """One JSON object; ``whole`` has the tensors and the state that isn't tensors too.

    What isn't a finite number is ``null``: JSON has none.
    """
    written: dict[str, Any] = {
        "name": seen.name,
        "good": not seen.problem,
        "problem": seen.problem or None,
        "live": seen.live,
    }
    if seen.info is not None and seen.manifest is not None:
        written = {**asdict(seen.info), **written, "written_at_ns": seen.manifest.written_at_ns}
        written["tensors"] = len(seen.manifest.file.tensors)
        if whole:
            written["tensors"] = [asdict(entry) for entry in seen.manifest.file.tensors]
            written["meta"] = _finite(seen.manifest.meta)
    return orjson.dumps(written).decode()


def _head(seen: SeenCheckpoint) -> list[Part]:
    usable = not seen.problem and seen.live
    return [
        ("·" if usable else "✗", "dim" if usable else "bad"),
        (seen.name, "name"),
        (seen.problem, "bad"),
        ("" if seen.live or seen.problem else "undone by a rollback", "warn"),
    ]


def _told(manifest: Manifest) -> list[tuple[str, str]]:
    meta = manifest.meta
    model = _model(manifest)
    numbers = sum(math.prod(entry.shape) for entry in model)
    groups: Mapping[str, Any] = meta.get("learning_rate", {}).get("groups", {})
    seeds = meta.get("kasmina", {}).get("seeds", [])
    mode = ", ".join(name for name, value in _mode(meta).items() if value is True)
    return [
        ("job", str(meta.get("job", ""))),
        ("seed", str(meta.get("seed", ""))),
        ("step", f"{manifest.step} on timeline {manifest.timeline}, epoch {meta.get('epoch')}"),
        ("data", f"goes on at batch {meta.get('data_position')}"),
        ("journal", f"contains records up to {manifest.sequence}"),
        ("label", str(meta.get("label", ""))),
        ("mode", mode),
        ("rates", ", ".join(f"{name} {rate['applied']:.6g}" for name, rate in groups.items())),
        ("seeds", ", ".join(str(item.get("seed_id", item)) for item in seeds)),
        ("size", f"{size(manifest.file.bytes)} in {len(manifest.file.tensors)} tensors"),
        ("manifest", f"sha256 {manifest.sha256}"),
        ("model", f"{numbers:,} numbers in {len(model)} tensors:"),
    ]


def _mode(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    found = orjson.loads(meta.get("mode") or "{}")
    return found if isinstance(found, dict) else {}


def _model(manifest: Manifest) -> list[TensorEntry]:
    return [entry for entry in manifest.file.tensors if entry.name.startswith("model.")]


def _short(entry: TensorEntry) -> str:
    return entry.name.removeprefix("model.")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
        return str(value)
    return value
