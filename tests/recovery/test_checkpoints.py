"""A checkpoint comes back bit for bit, whatever is in it."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.recovery.states import assert_same, save, tensors
from tolaria_bus.tolaria.recovery.checkpoints import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointStore,
    checkpoint_name,
)
from tolaria_bus.tolaria.recovery.manifest import Manifest, decode, encode
from tolaria_bus.tolaria.recovery.tensor_file import TensorFile

NAME = checkpoint_name(1200, 1, 345)


def every_dtype() -> list[torch.dtype]:
    """All dtypes of whole bytes that aren't quantised."""
    found = {item for item in vars(torch).values() if isinstance(item, torch.dtype)}
    skipped = ("bits", "quint", "qint", "int1", "int2", "int3", "int4", "int5", "int6", "int7")
    names = {str(item).removeprefix("torch."): item for item in found}
    return [
        dtype
        for name, dtype in sorted(names.items())
        if not name.startswith("bit")
        and not name.startswith("q")
        and name.removeprefix("u") not in skipped
    ]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", every_dtype(), ids=str)
def test_every_dtype_comes_back_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (5 * 6 * dtype.itemsize,), generator=generator).to(torch.uint8)
    if dtype == torch.bool:
        raw %= 2
    full = raw.view(dtype).reshape(5, 6)  # NaNs with payloads, too.
    state = {"full": full, "one": full[2, 3], "none": full[:0], "turned": full.t()}
    state["every second"] = full[:, ::2]
    store = CheckpointStore(tmp_path)
    store.save(NAME, state, {})
    found, _ = store.load(NAME)
    assert_same(found, state)


def test_the_name_says_step_timeline_and_sequence() -> None:
    assert NAME == "step-00001200-t1-s345"
    assert checkpoint_name(123_456_789, 12, 0) == "step-123456789-t12-s0"


def test_the_files_can_be_read_with_other_tools(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, clock_ns=lambda: 99).save(NAME, tensors(), {"epoch": 3})
    assert_same(
        dict(sorted(load_file(tmp_path / NAME / "tensors.safetensors").items())),
        dict(sorted(tensors().items())),
    )
    manifest = orjson.loads((tmp_path / NAME / "manifest.json").read_bytes())
    assert manifest["format"] == "tolaria-bus checkpoint"
    assert [manifest[key] for key in ("version", "step", "timeline", "sequence")] == [
        1,
        1200,
        1,
        345,
    ]
    assert manifest["written_at_ns"] == 99
    assert manifest["meta"] == {"epoch": 3}
    first = manifest["file"]["tensors"][0]
    assert (first["name"], first["dtype"], first["shape"]) == ("model.weight", "float32", [40, 30])
    assert first["bytes"] == 4800
    assert sorted(path.name for path in (tmp_path / NAME).iterdir()) == [
        "manifest.json",
        "tensors.safetensors",
    ]


def test_what_is_loaded_is_private(tmp_path: Path) -> None:
    """It is mapped from the file; writing to it must change neither file nor other mappings."""
    store = CheckpointStore(tmp_path)
    store.save(NAME, tensors(), {})
    first, _ = store.load(NAME)
    for tensor in first.values():
        tensor.zero_()
    assert_same(store.load(NAME)[0], tensors())


def test_what_is_loaded_outlives_its_files(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    found, _ = store.load(checkpoint_name(1, 1, 1))
    save(store, 2)
    assert not store.has(checkpoint_name(1, 1, 1))
    assert_same(found, tensors(1))


def test_tensors_may_share_memory(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))
    state: dict[str, Tensor] = {"a": weight, "tied": weight, "part": weight[1]}
    store = CheckpointStore(tmp_path)
    store.save(NAME, state, {})
    assert_same(store.load(NAME)[0], state)


def test_a_state_without_tensors(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(NAME, {}, {"a": 1})
    assert store.load(NAME) == ({}, {"a": 1})


def test_large_tensors_go_through_in_pieces(tmp_path: Path) -> None:
    state = {"big": torch.randn(900_001), "small": torch.ones(3, dtype=torch.int8)}
    store = CheckpointStore(tmp_path)
    store.save(NAME, state, {})
    assert_same(store.load(NAME)[0], state)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.eye(3).to_sparse(), "'x' is sparse"),
        (torch.empty(3, device="meta"), "'x' is on the meta device"),
    ],
)
def test_tensors_without_plain_bytes_are_refused(tmp_path: Path, bad: Tensor, says: str) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointFailed, match=says):
        store.save(NAME, {"good": torch.ones(3), "x": bad}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_reserved_tensor_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFailed, match="__metadata__"):
        CheckpointStore(tmp_path).save(NAME, {"__metadata__": torch.ones(1)}, {})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"a": {"b": [1, object()]}}, r"meta\.a\.b\[1\] is a object"),
        ({"a": {1: 2}}, r"meta\.a has the key 1"),
        ({"$float": "nan"}, r"meta has the key '\$float'"),
        ({"a": "\ud800"}, "can't be written as JSON"),
    ],
)
def test_meta_that_json_cannot_hold_is_refused(
    tmp_path: Path, bad: dict[str, object], says: str
) -> None:
    with pytest.raises(CheckpointFailed, match=says):
        CheckpointStore(tmp_path).save(NAME, {}, bad)


def test_statistics_that_are_not_numbers_and_the_order_of_keys_come_back(tmp_path: Path) -> None:
    meta = {"mean": math.nan, "best": [math.inf, -math.inf, -0.0], "big": {"seed": 1 << 130}}
    store = CheckpointStore(tmp_path)
    store.save(NAME, {}, meta)
    _, found = store.load(NAME)
    assert repr(found) == repr(meta)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Sc"])), inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "ü"]), json_values))
def test_any_meta_comes_back(meta: dict[str, object]) -> None:
    data, sha256 = encode(Manifest(1, 2, 3, 4, TensorFile(0, 0, ()), meta))
    found = decode(data)
    assert repr(found.meta) == repr(meta)  # NaN is NaN, -0.0 is -0.0, keys in their order.
    assert found.sha256 == sha256


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 9), max_size=6
    )
)
def test_any_names_and_sizes_come_back(tmp_path: Path, sizes: dict[str, int]) -> None:
    state = {
        name: torch.arange(size, dtype=[torch.float64, torch.int8, torch.float16][size % 3])
        for name, size in sizes.items()
    }
    store = CheckpointStore(tmp_path, keep=1)
    name = checkpoint_name(len(list(tmp_path.iterdir())), 1, hash(tuple(sizes.items())) % 10**9)
    if "__metadata__" not in state and not store.has(name):
        store.save(name, state, {})
        assert_same(store.load(name)[0], state)


def test_a_good_one_of_the_same_name_stays_and_can_be_pinned(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 7)
    before = (tmp_path / checkpoint_name(7, 1, 7) / "manifest.json").read_bytes()
    save(store, 7, pin=True)
    (info,) = store.list()
    assert info.pinned
    assert (tmp_path / info.name / "manifest.json").read_bytes() == before


def test_the_list_describes_what_is_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.list() == ()
    for step in (300, 100, 200):
        store.save(
            checkpoint_name(step, 1, step), tensors(), {"epoch": step // 100, "label": f"l{step}"}
        )
    found = store.list()
    assert [(item.step, item.epoch, item.label) for item in found] == [
        (100, 1, "l100"),
        (200, 2, "l200"),
        (300, 3, "l300"),
    ]
    assert found[0].bytes > 4800
    newest = store.newest()
    assert newest is not None
    assert newest.manifest_sha256 == found[-1].manifest_sha256


def test_the_newest_is_the_newest_live_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    save(store, 100, 5)
    save(store, 200, 5)
    save(store, 150, 9)
    newest = store.newest()
    assert newest is not None
    assert newest.meta == {"step": 150}
    assert_same(newest.tensors, tensors(150))
    live = store.newest(lambda sequence, step: sequence == 5 and step < 150, load=False)
    assert live is not None
    assert (live.name, live.tensors) == (checkpoint_name(100, 1, 5), {})
    assert store.newest(lambda *_: False) is None


def test_a_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="is missing") as caught:
        CheckpointStore(tmp_path).load(NAME)
    assert caught.value.reason == "missing"


def test_names_and_limits_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="isn't a checkpoint's name"):
        CheckpointStore(tmp_path).save("../x", {}, {})
    with pytest.raises(ValueError, match="keep = 0"):
        CheckpointStore(tmp_path, keep=0)
