"""Where a seed can stand in a model: in a ``SeedSlot``, or behind any module, named by its path.

Behind a module the seed takes the module's output, by a forward hook that is there only while the
seed has a say in it; the seed itself is a child of that module (``tolaria_seed``), so that it
moves, trains and is saved with its host. A ``Sequential`` calls all of its children in turn, so
the seed of one is its last child's, whose output is its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tolaria_bus.kasmina.errors import SeedRefused
from tolaria_bus.kasmina.slot import KINDS, Graft, SeedSlot, SlotKind

HOOKED_CHILD = "tolaria_seed"

# A module, or its children, are called by whoever holds them: it has no output of its own.
_NO_OUTPUT = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class SlotShape(NamedTuple):
    """What comes out of a module: how a job declares one whose class doesn't tell."""

    kind: SlotKind
    features: int


class InSlot:
    """A place that the model has a ``SeedSlot`` for."""

    def __init__(self, name: str, slot: SeedSlot) -> None:
        self.name = name
        self.kind: SlotKind = slot.kind
        self.prefix = f"{name}.seed" if name else "seed"
        self.host: nn.Module | None = None
        self._slot = slot

    @property
    def features(self) -> int:
        """What the slot's shape is now: pruning may make it narrower."""
        return self._slot.features

    @property
    def seed(self) -> nn.Module | None:
        """The module that grows here."""
        return self._slot.seed

    def plant(self, seed: nn.Module | None) -> None:
        """Put a seed in, or (None) take it out, with its graft."""
        self._slot.seed = seed
        self._slot.graft = None

    @property
    def graft(self) -> Graft | None:
        """How the seed's output gets into the host's; None: it doesn't."""
        return self._slot.graft

    @graft.setter
    def graft(self, graft: Graft | None) -> None:
        self._slot.graft = graft

    @property
    def training(self) -> bool:
        """Whether the host is in training mode here."""
        return self._slot.training


class BehindModule:
    """A place behind a module of the model: ``host``, at ``path``."""

    def __init__(self, name: str, path: str, host: nn.Module, shape: SlotShape) -> None:
        self.name = name
        self.kind, self.features = shape
        self.prefix = f"{path}.{HOOKED_CHILD}"
        self.host: nn.Module | None = host
        self.path = path
        self._module = host
        self._graft: Graft | None = None
        self._handle: RemovableHandle | None = None

    @property
    def seed(self) -> nn.Module | None:
        """The module that grows here."""
        return self._module._modules.get(HOOKED_CHILD)

    def plant(self, seed: nn.Module | None) -> None:
        """Put a seed in, or (None) take it out, with its graft and its hook."""
        self.graft = None
        if seed is None:
            self._module._modules.pop(HOOKED_CHILD, None)
        else:
            self._module.add_module(HOOKED_CHILD, seed)

    @property
    def graft(self) -> Graft | None:
        """How the seed's output gets into the host's; None: it doesn't, and there is no hook."""
        return self._graft

    @graft.setter
    def graft(self, graft: Graft | None) -> None:
        self._graft = graft
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if graft is not None:
            self._handle = self._module.register_forward_hook(SeedHook(graft))

    @property
    def training(self) -> bool:
        """Whether the host is in training mode here."""
        return self._module.training


Place = InSlot | BehindModule


class SeedHook:
    """Sends a module's output, or the first of a tuple of them, through a graft."""

    def __init__(self, graft: Graft) -> None:
        self._graft = graft

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output as the graft makes it. Raises TypeError: there is no tensor in it."""
        if isinstance(output, Tensor):
            return self._graft(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self._graft(output[0]), *output[1:])
        raise TypeError(
            f"a seed stands behind a {type(module).__name__}, which returned a "
            f"{type(output).__name__}; it must return a tensor, or a tuple that begins with one"
        )


class Places:
    """The places of a model. Those behind modules that nobody declared are found when named.

    Args:
        model: Its ``SeedSlot`` modules are places by their qualified names.
        declared: Places behind modules: paths, or path → ``SlotShape`` where the module's class
            doesn't tell what comes out of it.

    Raises:
        ValueError: a declared path is wrong; the message says how.
    """

    def __init__(
        self,
        model: nn.Module,
        declared: Iterable[str] | Mapping[str, SlotShape | tuple[str, int] | None] = (),
    ) -> None:
        self._model = model
        self._places: dict[str, Place] = {
            name: InSlot(name, module)
            for name, module in model.named_modules()
            if isinstance(module, SeedSlot)
        }
        shapes = declared if isinstance(declared, Mapping) else dict.fromkeys(declared)
        self._told = {name for name, shape in shapes.items() if shape is not None}
        for name, shape in shapes.items():
            try:
                self._places[name] = self._behind(name, _checked(name, shape))
            except SeedRefused as refused:
                raise ValueError(refused.reason) from None

    def all(self) -> list[Place]:
        """Return the slots, the declared places, and those that were named since."""
        return list(self._places.values())

    def at(self, name: str) -> Place:
        """Return the place of a name: a slot's, a declared one's, or any module's path.

        Raises:
            SeedRefused: ``unknown_slot``: nothing has that name, or its shape can't be told.
        """
        if name not in self._places:
            self._places[name] = self._behind(name, None)
        return self._places[name]

    def look_again(self) -> None:
        """Modules may have become narrower: ask those again that told their own shape."""
        for name, place in list(self._places.items()):
            if isinstance(place, BehindModule) and place.seed is None and name not in self._told:
                self._places[name] = self._behind(name, None)

    def _behind(self, name: str, shape: SlotShape | None) -> BehindModule:
        try:
            host = self._model.get_submodule(name) if name else None
        except AttributeError:
            host = None
        path = name
        while isinstance(host, nn.Sequential) and len(host):
            last = list(host._modules)[-1]
            host, path = host[-1], f"{path}.{last}"
        if host is None or isinstance(host, (nn.Sequential, SeedSlot, *_NO_OUTPUT)):
            known = ", ".join(f"{place.name} ({place.kind})" for place in self.all())
            raise SeedRefused(
                "unknown_slot",
                f"slot is {name!r}; allowed: {known or 'no seed slot, as the model has none'}, "
                "or the path of a module that returns a tensor",
            )
        found = shape or _shape_of(host)
        if found is None:
            raise SeedRefused(
                "unknown_slot",
                f"slot is {name!r}, a {type(host).__name__}: what comes out of it can't be told "
                "from its class; the job must declare it in seed_slots, as "
                f"{{{name!r}: ('conv2d', 64)}}",
            )
        return BehindModule(name, path, host, found)


def _shape_of(module: nn.Module) -> SlotShape | None:
    """What comes out of a module of torch's own, where its class tells."""
    match module:
        case nn.Conv2d():
            return SlotShape("conv2d", module.out_channels)
        case nn.BatchNorm2d():
            return SlotShape("conv2d", module.num_features)
        case nn.Linear():
            return SlotShape("linear", module.out_features)
        case nn.BatchNorm1d():
            return SlotShape("linear", module.num_features)
        case nn.LayerNorm() if len(module.normalized_shape) == 1:
            return SlotShape("linear", module.normalized_shape[0])
        case nn.Embedding():
            return SlotShape("linear", module.embedding_dim)
        case nn.TransformerEncoderLayer():
            features = module.linear2.out_features
            return SlotShape("sequence" if module.self_attn.batch_first else "linear", features)
    return None


def _checked(name: str, shape: object) -> SlotShape | None:
    if shape is None:
        return None
    if isinstance(shape, tuple) and len(shape) == 2:
        kind, features = shape
        if kind in KINDS and isinstance(features, int) and features >= 1:
            return SlotShape(kind, features)
    raise ValueError(
        f"seed_slots: {name!r} is {shape!r}; allowed: (kind, features) with kind one of "
        f"{', '.join(KINDS)} and features a whole number above 0"
    )
