"""Whether a module computes what its class and its own weights say, and nothing else.

A weight may be computed anew before each pass (``spectral_norm``, ``weight_norm``, a
parametrization, a mask), and a hook may change what goes into a module or comes out of it.
"""

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tolaria_bus.kasmina.places import SeedHook

_OWN = ("weight", "bias")


def oddity(module: nn.Module) -> str:
    """Say what is special about a module; empty if nothing is. A seed's hook is not."""
    if parametrize.is_parametrized(module):
        return "is parametrized"
    for name in _OWN:
        made = isinstance(getattr(module, name, None), Tensor) and name not in module._parameters
        if made:
            return f"has a {name} that is made of other tensors"
    if "forward" in vars(module):
        return "has a forward of its own"
    return hooked(module)


def hooked(module: nn.Module) -> str:
    """Say which hook sees what goes into a module or comes out of it; empty: none but a seed's."""
    if module._forward_pre_hooks:
        return "has a forward-pre hook"
    if not all(isinstance(hook, SeedHook) for hook in module._forward_hooks.values()):
        return "has a forward hook"
    return ""


def shared(model: nn.Module, module: nn.Module) -> bool:
    """Whether another module of a model has a parameter or buffer of this one's, or its memory."""
    own = {_memory(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())}
    return any(
        _memory(tensor) in own - {None}
        for other in model.modules()
        if other is not module
        for tensor in (*other._parameters.values(), *other._buffers.values())
    )


def _memory(tensor: Tensor | None) -> object:
    """Where a tensor's numbers are; None: nowhere."""
    if tensor is None or is_lazy(tensor) or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr()
