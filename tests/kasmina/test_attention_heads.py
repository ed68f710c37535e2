"""Heads of torch's own attention are removed with all that is theirs, and nothing else changes."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import identity

from tests.kasmina.hosts import Training, batch, output
from tolaria_bus.kasmina import Garden, Moment, SeedRefused


class Reads(nn.Module):
    """A transformer of torch's over the rows of an image, the last of which may be padding."""

    def __init__(self, kind: type[nn.MultiheadAttention] = nn.MultiheadAttention) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.across = kind(8, 4, kdim=4, vdim=4, add_bias_kv=True, batch_first=True)
        self.norm = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1, 2)
        padding = torch.zeros(rows.shape[:2], dtype=torch.bool)
        padding[::2, -1] = True
        x = self.encoder(self.embed(rows), src_key_padding_mask=padding)
        x = x + self.across(x, rows, rows, need_weights=False)[0]
        logits: Tensor = self.head(torch.relu(self.norm(x)).mean(1))
        return logits


FIRST, SECOND = "encoder.layers.0.self_attn", "encoder.layers.1.self_attn"


def run() -> Training:
    model = Reads().train()
    trained = Training(model, Garden(model))
    trained.steps(3)
    return trained


# A nested tensor is what nn.TransformerEncoder makes of a padded batch in eval mode.
nested = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


@nested
@pytest.mark.parametrize("target", [FIRST, SECOND])
def test_an_encoder_of_torchs_hears_the_same_with_gradients_and_without(target: str) -> None:
    trained = run()
    silenced = copy.deepcopy(trained.model)
    plan, _ = trained.prune(target, 0.5)
    gone = [head for head in range(4) if head not in plan.keep]
    with torch.no_grad():
        weight = silenced.get_parameter(f"{target}.out_proj.weight")
        weight.view(8, 4, 2)[:, gone] = 0.0
    # Not a bit more than rounding: padded places, too, are as before.
    torch.testing.assert_close(output(trained.model), output(silenced), rtol=1e-5, atol=1e-6)
    images = batch(5)[0]
    one, two = trained.model.eval()(images), silenced.eval()(images)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    module: Any = trained.model.get_submodule(target)
    rows = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
    assert module(rows, rows, rows)[1].shape == (2, 3, 3)
    with pytest.raises(ValueError, match="a nested tensor can't come with a mask"):
        module(rows, rows, rows, key_padding_mask=torch.zeros(2, 3).bool())
    with pytest.raises(ValueError, match="can only be query, key and value in one"):
        module(rows, rows * 2, rows)


@nested
def test_those_go_whose_weights_are_the_smallest_and_the_numbers_that_are_theirs() -> None:
    trained = run()
    model: Any = trained.model
    own = model.encoder.layers[0].self_attn
    with torch.no_grad():
        norms = own.in_proj_weight.double().abs().view(3, 4, -1).sum((0, 2))
        norms += own.out_proj.weight.double().abs().view(8, 4, 2).sum((0, 2))
    gone = sorted(norms.argsort()[:2].tolist())
    plan, done = trained.prune(FIRST, 0.5)
    assert (plan.unit, sorted({0, 1, 2, 3} - set(plan.keep))) == ("heads", gone)
    assert (done.removed, done.parameters) == (2, 2 * 2 * (3 * 9 + 8))
    assert (own.num_heads, own.head_dim, own.embed_dim) == (2, 2, 8)
    assert own.in_proj_weight.shape == (12, 8)
    assert own.out_proj.in_features == 4
    _, done = trained.prune("across", 0.3)
    assert done.parameters == 2 * (8 + 4 + 4 + 3 + 2 + 8)


@nested
def test_it_trains_on_with_the_state_of_what_stayed() -> None:
    trained = run()
    for target in (FIRST, "across"):
        module: Any = trained.model.get_submodule(target)
        names = [name for name, _ in module.named_parameters() if name != "out_proj.bias"]
        state = trained.manager.optimizer.state
        before = {
            (name, key): state[module.get_parameter(name)][key].clone()
            for name in names
            for key in ("exp_avg", "exp_avg_sq")
        }
        plan, done = trained.prune(target, 0.5)
        assert {cut.name for cut in done.narrowed} == {f"{target}.{name}" for name in names}
        for (name, key), was in before.items():
            dim = {"out_proj.weight": 1, "bias_k": 2, "bias_v": 2}.get(name, 0)
            by_head = was.unflatten(dim, (-1, 4, 2))
            stayed = by_head.index_select(dim + 1, torch.tensor(plan.keep)).flatten(dim, dim + 2)
            assert torch.equal(state[module.get_parameter(name)][key], stayed)
        weights = [parameter.detach().clone() for parameter in module.parameters()]
        trained.steps(2)
        moved = zip(weights, module.parameters(), strict=True)
        assert not any(torch.equal(one, two) for one, two in moved)


@nested
def test_after_several_prunings_it_is_written_down_rebuilt_and_made_whole_again() -> None:
    whole = run()
    plain = whole.garden.structure()
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    first = whole.manager.export()
    first = ({name: tensor.clone() for name, tensor in first[0].items()}, first[1])
    with torch.no_grad():  # The first of all goes first: those behind it get other places.
        whole.model.get_parameter(f"{FIRST}.in_proj_weight").view(3, 4, 2, 8)[:, 0] *= 0.01
    once, _ = whole.prune(FIRST, 0.3)
    whole.steps(1)
    twice, _ = whole.prune(FIRST, 0.4)
    whole.prune("across", 0.9)
    whole.steps(1)
    assert (once.keep, twice.channels) == ((1, 2, 3), 3)
    structure = json.loads(json.dumps(whole.garden.structure()))
    model = Reads().train()
    fresh = Training(model, Garden(model))
    fresh.garden.rebuild(structure)
    fresh.model.load_state_dict(whole.model.state_dict())
    fresh.manager.load(*whole.manager.export())
    fresh.position = whole.position
    assert fresh.garden.structure() == structure
    # By their first numbers, so that a mask for all heads finds its own.
    left: Any = [each.model.get_submodule(FIRST) for each in (whole, fresh)]
    assert left[0].kept_heads == left[1].kept_heads == tuple(place + 1 for place in twice.keep)
    assert torch.equal(output(fresh.model), output(whole.model))
    for each in (whole, fresh):
        torch.default_generator.manual_seed(9)
        each.steps(2)
    for one, two in zip(whole.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    # A rollback to before the cuts.
    whole.garden.rebuild(plain)
    whole.model.load_state_dict(weights)
    whole.manager.load(*first)
    assert whole.garden.structure() == plain
    for name in (FIRST, "across"):
        module: Any = whole.model.get_submodule(name)
        assert type(module) is nn.MultiheadAttention
        assert vars(module).keys() == vars(Reads().get_submodule(name)).keys()
        assert (module.num_heads, module._qkv_same_embed_dim) == (4, name == FIRST)
    assert torch.equal(output(whole.model), output(run().model))


@nested
def test_the_last_head_stays() -> None:
    trained = run()
    trained.prune(FIRST, 0.99)
    assert trained.model.get_submodule(FIRST).num_heads == 1
    trained.steps(1)
    with pytest.raises(SeedRefused, match="which has one head only"):
        trained.garden.plan_prune(FIRST, 0.5)


@nested
def test_a_gate_that_refuses_leaves_every_bit_as_it_was() -> None:
    trained = run()
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    structure = trained.garden.structure()
    plan = trained.garden.plan_prune(FIRST, 0.5)
    losses = iter([1.0, 1.06])
    words = "G4_SYSTEM_IMPACT: the held-out loss is 1.06 with the heads' removal and 1 without"
    with pytest.raises(SeedRefused, match=words):
        trained.garden.prune(plan, Moment(trained.position, held_out=lambda: next(losses)))
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert type(trained.model.get_submodule(FIRST)) is nn.MultiheadAttention
    assert trained.garden.structure() == structure


@nested
def test_the_model_can_be_copied_and_pickled_and_other_layers_traced_as_before(tmp_path) -> None:
    trained = run()
    trained.prune(FIRST, 0.5)
    trained.prune("across", 0.5)
    torch.save(trained.model, tmp_path / "model.pt")
    read = torch.load(tmp_path / "model.pt", weights_only=False)
    for same in (copy.deepcopy(trained.model), read):
        assert torch.equal(output(same), output(trained.model))
    model = Traced()
    garden = Garden(model)
    for target in ("attention", "one"):
        plan = garden.plan_prune(target, 0.5, {"impact": 1e6})
        garden.prune(plan, Moment(0, held_out=lambda: 1.0))
    model(torch.randn(2, 3, 8)).sum().backward()
    assert model.one.out_features == 2


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.one = nn.Linear(8, 4)
        self.two = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(self.attention(x, x, x)[0]))
        return out


@nested
def test_it_can_be_compiled_and_goes_on_when_more_heads_go() -> None:
    """Forward and backward: what is captured here is all that the backend "eager" would run."""
    torch.compiler.reset()
    trained = run()
    model: Any = trained.model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    compiled: Any = torch.compile(model, backend="aot_eager", dynamic=False)
    images = batch(5)[0]
    for target, fraction in [(FIRST, 0.3), (FIRST, 0.4), ("across", 0.5)]:
        compiled(images).sum().backward()
        trained.prune(target, fraction)
        for training in (True, False):
            model.train(training)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


class Other(nn.MultiheadAttention):
    pass


def test_what_cannot_be_cut_is_refused_saying_what_is_in_the_way() -> None:
    def refused(words: str, model: nn.Module, target: str = FIRST) -> None:
        with pytest.raises(SeedRefused, match=words) as error:
            Garden(model).plan_prune(target, 0.5)
        assert error.value.code == "bad_parameter"

    refused(
        rf"target is 'encoder\.layers\.0'; allowed: {FIRST}, {SECOND}, .*"
        "; no layer, as the model can't be traced",
        Reads(),
        FIRST[:-10],
    )
    refused("target is 'across'; allowed: ", Reads(Other), "across")
    parametrized: Any = Reads()
    nn.utils.parametrizations.orthogonal(parametrized.encoder.layers[0].self_attn.out_proj)
    refused("its out_proj is a Parametrized", parametrized)
    masked: Any = Reads()
    identity(masked.encoder.layers[0].self_attn, "in_proj_weight")  # type: ignore[no-untyped-call]
    refused("its in_proj_weight is made of other parameters", masked)
    tied: Any = Reads()
    layers = tied.encoder.layers
    layers[1].self_attn.in_proj_weight = layers[0].self_attn.in_proj_weight
    refused(f"{FIRST}.in_proj_weight and {SECOND}.in_proj_weight are one parameter", tied)


@nested
def test_a_seed_behind_it_lives_through_a_pruning_and_its_rollback() -> None:
    model = Reads().train()
    trained = Training(model, Garden(model, {"across": ("sequence", 8)}))
    trained.steps(2)
    trained.grow("a", "low_rank", slot="across")
    trained.do("START_TRAINING")
    trained.steps(11)
    whole = json.loads(json.dumps(trained.garden.structure()))
    trained.prune("across", 0.5)
    seed = model.across.tolaria_seed
    trained.steps(1)
    trained.do("START_GRAFTING")
    trained.steps(1)
    assert math.isfinite(trained.held_out())
    rebuilt = trained.garden.rebuild(whole)
    assert (rebuilt.removed, rebuilt.germinated) == ({}, ())
    assert model.across.tolaria_seed is seed
    assert model.across.num_heads == 4
