"""What ``tolaria-bus checkpoints`` lists, verifies, shows and takes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Call
from tests.cli.test_journal import contents, parsed
from tests.trainer.conftest import Moons, make_run  # noqa: F401 - a fixture
from tests.trainer.test_heads import Transformer, pruned
from tests.trainer.test_recovery import steer
from tolaria_bus.kasmina import Garden
from tolaria_bus.tolaria.engine.job import build_model, view


@pytest.fixture
def steered(make_run, clean_place: Path) -> Path:  # noqa: F811
    """A run that was steered, rolled back, and ended; one of its checkpoints is undone."""
    run = make_run("runs/r", checkpoint_every_steps=12)
    steer(run)
    run.send('{"commandId": "pin", "commandType": "CHECKPOINT", "checkpoint": {"pin": true}}',
             at_step=36)  # fmt: skip
    run.send('{"commandId": "far", "commandType": "ROLLBACK", "rollbackPayload": '
             '{"target_step": 36}}', at_step=50)  # fmt: skip
    run.train()
    return Path(run.path)


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*-t3-*"))


async def test_ls_lists_them_and_marks_what_is_undone(cli: Call, steered: Path) -> None:
    before = contents(steered)
    ended = await cli("checkpoints", "ls", "r")
    assert (ended.code, ended.err) == (0, "")
    found = parsed((await cli("checkpoints", "ls", str(steered), "--json")).lines)
    assert [item["name"] for item in found] == [line.split()[1] for line in ended.lines]
    assert found[-1]["name"] == newest(steered).name
    assert [line.startswith("✗") for line in ended.lines] == [not item["live"] for item in found]
    undone = [item for item in found if not item["live"]]
    assert undone
    assert {item["timeline"] for item in undone} < {1, 2, 3}
    [pinned] = [item for item in found if item["pinned"]]
    assert pinned["step"] == 36
    assert contents(steered) == before


async def test_verify_reads_every_byte_and_sets_nothing_aside(cli: Call, steered: Path) -> None:
    assert (await cli("checkpoints", "verify", "r")).code == 0
    tensors = newest(steered) / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-3] ^= 1
    tensors.write_bytes(data)
    before = contents(steered)
    assert (await cli("checkpoints", "ls", "r")).lines[-1].startswith("· ")  # It looks at sizes.
    ended = await cli("checkpoints", "verify", "r")
    assert ended.code == 1
    [bad] = [line for line in ended.lines if "good:" not in line]
    assert bad.startswith(f"✗ {newest(steered).name} corrupt: tensor ")
    one = await cli("checkpoints", "verify", "r", newest(steered).name, "--json")
    assert (one.code, parsed(one.lines)[0]["good"]) == (1, False)
    assert (await cli("checkpoints", "verify", "r", "36")).code == 0
    assert contents(steered) == before
    told = await cli("checkpoints", "export", "r", "m.safetensors")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert not os.access("m.safetensors", os.F_OK)


async def test_one_that_is_torn_or_was_set_aside_is_listed_with_its_reason(
    cli: Call, steered: Path
) -> None:
    (newest(steered) / "manifest.json").write_bytes(b"{}")
    aside = steered / "checkpoints" / "step-00000004-t1-s0.bad-torn"
    aside.mkdir()
    (aside / "reason.txt").write_text("checkpoint step-00000004-t1-s0 is torn: it ends too early\n")
    lines = (await cli("checkpoints", "ls", "r")).lines
    assert lines[-1] == f"✗ {aside.name} torn: it ends too early"
    assert lines[-2].startswith(f"✗ {newest(steered).name} foreign: ")


async def test_show_tells_what_is_in_one(cli: Call, steered: Path) -> None:
    ended = await cli("checkpoints", "show", "r")
    assert ended.code == 0
    told = {line.split()[0]: line for line in ended.lines[1:]}
    assert newest(steered).name in ended.lines[0]
    assert "s1" in told["seeds"]
    assert "seed:s1" in told["rates"]
    assert "timeline 3" in told["step"]
    assert told["0.weight"].split(maxsplit=1)[1] == "float32 [16, 2]"
    older = await cli("checkpoints", "show", "r", "36")
    assert "step-00000036-t" in older.lines[0]
    whole = orjson.loads((await cli("checkpoints", "show", "r", "--json")).out)
    assert whole["meta"]["data_position"] == 64
    assert {item["name"] for item in whole["tensors"]} >= {"model.0.weight", "random.torch"}


async def test_an_exported_model_is_that_of_the_run_in_plain_torch(
    cli: Call, steered: Path
) -> None:
    del steered
    exported: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("m.safetensors", "m.pt"):
        ended = await cli("checkpoints", "export", "r", name)
        assert (ended.code, ended.err) == (0, "")
        assert os.access(name, os.R_OK)
    exported["m.safetensors"] = load_file("m.safetensors")
    exported["m.pt"] = torch.load("m.pt", weights_only=True)
    first, second = exported.values()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = build_model(view(Moons()), 0)
    host = {name: tensor for name, tensor in first.items() if ".seed." not in name}
    assert host.keys() == model.state_dict().keys()
    assert len(host) < len(first)  # The seed that was germinated.
    again = await cli("checkpoints", "export", "r", "m.pt")
    assert (again.code, "--force" in again.err) == (2, True)
    assert (await cli("checkpoints", "export", "r", "m.pt", "--force")).code == 0
    early = await cli("checkpoints", "export", "r", "early.pt", "--checkpoint", "36")
    assert "of step-00000036-t" in early.out


async def test_a_pruned_model_is_read_elsewhere_once_it_has_its_structure(
    cli: Call,
    make_run,  # noqa: F811
    clean_place: Path,
) -> None:
    del clean_place
    run = make_run("runs/r", job=Transformer())
    pruned(run)
    run.train()
    shown = orjson.loads((await cli("checkpoints", "show", "r", "--json")).out)
    assert (await cli("checkpoints", "export", "r", "m.safetensors")).code == 0
    model: Any = build_model(view(Transformer()), 1)
    Garden(model).rebuild(shown["meta"]["kasmina"])
    model.load_state_dict(load_file("m.safetensors"), strict=True)
    assert model.block.self_attn.num_heads == 2
    right = Transformer().accuracy(model.eval(), Transformer().validation_data().tensors)
    assert float(right) > 0.7


class Shared(Moons):
    """Tied weights, and a buffer that is no part of the ``state_dict``."""

    def model(self) -> torch.nn.Module:
        model: Any = super().model()
        model.add_module("twin", torch.nn.Linear(16, 2))
        model.twin.weight = model[5].weight
        model.register_buffer("scratch", torch.ones(3), persistent=False)
        return torch.nn.Sequential(model)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        inner: Any = next(model.children())
        x, y = batch
        return torch.nn.functional.cross_entropy(inner.twin(inner[:5](x)), y)

    def accuracy(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return -self.loss(model, batch)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
async def test_tied_weights_have_all_their_names_and_transient_buffers_stay_behind(
    cli: Call,
    make_run,  # noqa: F811
    clean_place: Path,
    ending: str,
) -> None:
    del clean_place
    make_run("runs/r", job=Shared(), steps=4).train()
    assert (await cli("checkpoints", "export", "r", f"m.{ending}")).code == 0
    found = load_file("m.safetensors") if ending == "safetensors" else torch.load("m.pt")
    build_model(view(Shared()), 1).load_state_dict(found, strict=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ls", "nowhere"), "nowhere: no run of this id"),
        (("show", "r", "step-00000099-t1-s0"), "no checkpoint step-00000099-t1-s0 in"),
        (("show", "r", "99"), "no live checkpoint at step 99"),
        (("verify", "r", "99"), "there are: step-00000000-t1-s0"),
        (("export", "r", "m.onnx"), "must be one of .safetensors, .pt, .pth"),
        (("export", "r", "no/m.pt"), "doesn't exist"),
    ],
)
async def test_a_wrong_word_is_one_line(
    cli: Call,
    make_run,  # noqa: F811
    clean_place: Path,
    words: tuple[str, ...],
    says: str,
) -> None:
    del clean_place
    make_run("runs/r", steps=2).train()
    ended = await cli("checkpoints", *words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert says in ended.err
