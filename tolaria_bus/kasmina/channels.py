"""Where the output channels of a layer go in a model, and so what must be cut with them.

The model's forward is traced with ``torch.fx``. From the layer on, its channels are followed
through what keeps them apart (activations, dropout, pooling, batch norms, a flatten, a ``SeedSlot``
in which nothing grows) to the convolutions and linear layers that take them in. Anything else on
the way (an addition, a concatenation, a seed, the model's output) ties the channels to something
that is not to be cut: refused. So are hooks, and weights that are computed anew in each pass: the
trace doesn't show what they do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from tolaria_bus.kasmina.attention import ATTENTIONS, PrunedAttention
from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.plain import hooked, oddity
from tolaria_bus.kasmina.slot import SeedSlot

_PASS_MODULES = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
# Functions, and methods of tensors by name.
_PASS_CALLS: frozenset[object] = frozenset(
    {
        F.relu,
        F.leaky_relu,
        F.gelu,
        F.silu,
        F.dropout,
        F.max_pool2d,
        F.avg_pool2d,
        F.adaptive_avg_pool2d,
        torch.relu,
        torch.tanh,
        torch.sigmoid,
        "relu",
        "tanh",
        "sigmoid",
        "contiguous",
    }
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Use:
    """A tensor of which one dimension is made of a layer's channels.

    Attributes:
        name: Qualified.
        dim: Which dimension.
        repeat: How many neighbours along it belong to one channel (the pixels, behind a flatten).
        takes_in: It is the weight of a layer that takes the channels in.
        parts: How often all channels come along it, one after the other.
        slot: It is no tensor but an empty ``SeedSlot``, whose width they are.
        heads: It is no tensor but an ``nn.MultiheadAttention``, whose heads they are.
    """

    name: str
    dim: int
    repeat: int = 1
    takes_in: bool = False
    parts: int = 1
    slot: bool = False
    heads: bool = False


class _NotTraced(Exception):
    """The message says why."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, (SeedSlot, PrunedAttention))
        return ours or super().is_leaf_module(m, module_qualified_name)


def follow(model: nn.Module, target: str, seeds: Mapping[str, str]) -> list[Use]:
    """Return every tensor that the output channels of a layer are a dimension of.

    Args:
        model: In whatever mode.
        target: Path of a ``Conv2d`` or ``Linear``.
        seeds: Path of a module → the seed that grows behind it.

    Raises:
        SeedRefused: ``bad_parameter``: it is none, or its channels can't be cut; the reason says
            what is in the way.
    """
    modules = dict(model.named_modules())
    layer = modules.get(target)
    if not _is_layer(layer):
        if layer is not None and parametrize.is_parametrized(layer):
            raise refused(target, "it is parametrized")
        raise SeedRefused("bad_parameter", f"target is {target!r}; {_allowed(model, modules)}")
    assert isinstance(layer, _LAYERS)
    if what := oddity(layer):
        raise refused(target, f"it {what}")
    try:
        graph = _trace(model)
    except _NotTraced as error:
        raise refused(target, str(error)) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    own = [node for node in calls if node.target == target]
    if len(own) != 1:
        raise refused(target, f"it is called {len(own)} times in a pass")
    walk = _Walk(target, modules, calls, layer.weight.shape[0], seeds)
    walk.produced(target, layer)
    walk.go(own[0], flat=False)
    refuse_tied(model, target, walk.uses)
    cut = {use.name for use in walk.uses}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in cut:
            raise refused(target, f"{node.target} is used outside of its layer, too")
    return walk.uses


def _is_layer(module: nn.Module | None) -> bool:
    return type(module) in _LAYERS and getattr(module, "groups", 1) == 1


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # Whatever a forward raises that is given no numbers.
        text = " ".join(str(error).split())
        raise _NotTraced(f"the model can't be traced: {type(error).__name__}: {text}") from error


def _allowed(model: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    """Say which modules have heads, and which plain layers a pass calls once."""
    calls, why = [], ""
    try:
        calls = [node.target for node in _trace(model).nodes if node.op == "call_module"]
    except _NotTraced as error:
        why = f"; no layer, as {error}"
    known = [
        name
        for name, module in modules.items()
        if (_is_layer(module) and calls.count(name) == 1 and not oddity(module))
        or type(module) in ATTENTIONS
        or hasattr(module, "head_layout")
    ]
    return f"allowed: {', '.join(known) or 'none'}{why}"


class _Walk:
    def __init__(
        self,
        target: str,
        modules: dict[str, nn.Module],
        calls: list[fx.Node],
        channels: int,
        seeds: Mapping[str, str],
    ) -> None:
        self.uses: list[Use] = []
        self._target = target
        self._modules = modules
        self._calls = calls
        self._channels = channels
        self._seeds = seeds

    def produced(self, name: str, module: nn.Module) -> None:
        """Every tensor of a module has the channels as its first dimension."""
        named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        self.uses += [Use(f"{name}.{own}", 0) for own, tensor in named if tensor.dim()]

    def go(self, node: fx.Node, *, flat: bool) -> None:
        """Follow what a node returns; ``flat``: pixels of a channel are features by now."""
        if node.target in self._seeds:
            seed_id = self._seeds[str(node.target)]
            raise refused(self._target, f"the seed {seed_id!r} grows behind {node.target}")
        for user in node.users:
            self._cross(node, user)
            if user.op == "call_module":
                self._module(user, flat=flat)
            elif user.target in _PASS_CALLS:
                self.go(user, flat=flat)
            elif _flattens(user):
                self.go(user, flat=True)
            else:
                raise refused(self._target, f"its channels go into {user.target or user.op}")

    def _cross(self, node: fx.Node, user: fx.Node) -> None:
        """Look at the modules, with others inside, that the channels leave or go into here."""
        for path in dict(_around(node) ^ _around(user)).values():
            if path in self._seeds:
                raise refused(self._target, f"the seed {self._seeds[path]!r} grows behind {path}")
            if what := hooked(self._modules[path]):
                raise refused(self._target, f"its channels pass the border of {path}, which {what}")

    def _module(self, user: fx.Node, *, flat: bool) -> None:
        name = str(user.target)
        module = self._modules[name]
        if what := oddity(module):
            raise refused(self._target, f"its channels go into {name}, which {what}")
        if sum(call.target == name for call in self._calls) > 1:
            raise refused(self._target, f"its channels go into {name}, which is called twice")
        if isinstance(module, SeedSlot):
            self._slot(user, name, module, flat=flat)
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self.go(user, flat=True)
        elif type(module) in _PASS_MODULES:
            self.go(user, flat=flat)
        elif type(module) in _NORMS and not flat:
            self.produced(name, module)
            self.go(user, flat=flat)
        elif type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1):
            width = module.weight.shape[1]
            if width % self._channels:
                raise refused(self._target, f"{name} takes {width} features of its channels")
            self.uses.append(Use(f"{name}.weight", 1, width // self._channels, takes_in=True))
        else:
            raise refused(self._target, f"its channels go into {name}, a {type(module).__name__}")

    def _slot(self, user: fx.Node, name: str, slot: SeedSlot, *, flat: bool) -> None:
        if slot.seed is not None:
            raise refused(self._target, f"its channels go into {name}, where a seed grows")
        if flat or slot.features != self._channels:
            raise refused(
                self._target, f"its channels go into {name}, a SeedSlot of {slot.features} features"
            )
        self.uses.append(Use(name, 0, slot=True))
        self.go(user, flat=flat)


def _around(node: fx.Node) -> set[tuple[str, str]]:
    """In the forward of which calls of modules a node is: the call's name, the module's path."""
    stack = node.meta.get("nn_module_stack", {})
    return {(call, path) for call, (path, _) in stack.items() if path != node.target}


def _flattens(node: fx.Node) -> bool:
    """``torch.flatten(x, 1)`` or ``x.flatten(1)``."""
    names = (torch.flatten, "flatten")
    return node.target in names and tuple(node.args[1:]) == (1,) and not node.kwargs


def refuse_tied(model: nn.Module, target: str, uses: list[Use]) -> None:
    """Refuse to cut a parameter that is another one too: ``bad_parameter``."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    cut = {use.name for use in uses}
    for tied in names.values():
        if len(tied) > 1 and cut & set(tied):
            raise refused(target, f"{' and '.join(tied)} are one parameter")


def refused(target: str, why: str) -> SeedRefused:
    """What is in the way of cutting a layer."""
    return SeedRefused("bad_parameter", f"target is {target!r}: {why}")
