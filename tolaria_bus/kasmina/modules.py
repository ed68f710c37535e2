"""The modules that seeds are made of. Each is the identity when it is new.

Each is ``x + f(x)`` with the last layer of ``f`` at zero: grafting it in changes nothing until it
has learned something, and its gradient is not zero.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tolaria_bus.kasmina.slot import SlotKind

# Groups of a GroupNorm: as many as divide the channels, up to this.
_MAX_GROUPS = 8


class ResidualConv(nn.Module):
    """Two convolutions around a ReLU: ``x + conv(relu(norm(conv(x))))``."""

    def __init__(
        self, channels: int, kind: SlotKind, *, expansion: float, kernel_size: int
    ) -> None:
        super().__init__()
        hidden = max(1, round(channels * expansion))
        padding = kernel_size // 2
        self.expand = nn.Conv2d(channels, hidden, kernel_size, padding=padding, bias=False)
        self.norm = nn.GroupNorm(math.gcd(hidden, _MAX_GROUPS), hidden)
        self.project = _zero(nn.Conv2d(hidden, channels, kernel_size, padding=padding))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        out: Tensor = x + self.project(F.relu(self.norm(self.expand(x))))
        return out


class Bottleneck(nn.Module):
    """Fewer channels, a convolution among them, and back: He et al. 2015, beside the identity."""

    def __init__(
        self, channels: int, kind: SlotKind, *, reduction: float, kernel_size: int
    ) -> None:
        super().__init__()
        hidden = max(1, round(channels / reduction))
        groups = math.gcd(hidden, _MAX_GROUPS)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm_reduced = nn.GroupNorm(groups, hidden)
        self.conv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm_conv = nn.GroupNorm(groups, hidden)
        self.expand = _zero(nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        hidden = F.relu(self.norm_reduced(self.reduce(x)))
        out: Tensor = x + self.expand(F.relu(self.norm_conv(self.conv(hidden))))
        return out


class Depthwise(nn.Module):
    """A convolution of each channel by itself, then a mix of the channels."""

    def __init__(self, channels: int, kind: SlotKind, *, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )
        self.pointwise = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        out: Tensor = x + self.pointwise(F.relu(self.depthwise(x)))
        return out


class NormScale(nn.Module):
    """The normalised input, scaled and shifted by channel: two numbers for each channel."""

    def __init__(self, features: int, kind: SlotKind) -> None:
        super().__init__()
        self.norm: nn.GroupNorm | nn.LayerNorm
        if kind == "conv2d":
            self.norm = nn.GroupNorm(math.gcd(features, _MAX_GROUPS), features)
        else:
            self.norm = nn.LayerNorm(features)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (…, F) → the same shape."""
        out: Tensor = x + self.norm(x)
        return out


class ResidualMlp(nn.Module):
    """Two layers around a GELU: ``x + linear(gelu(linear(x)))``."""

    def __init__(self, features: int, kind: SlotKind, *, expansion: float) -> None:
        super().__init__()
        hidden = max(1, round(features * expansion))
        self.expand = nn.Linear(features, hidden)
        self.project = _zero(nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> Tensor:
        """(…, F) → the same shape."""
        out: Tensor = x + self.project(F.gelu(self.expand(x)))
        return out


class LowRank(nn.Module):
    """A linear map of low rank beside the identity, over channels or features (Hu et al. 2021)."""

    def __init__(self, features: int, kind: SlotKind, *, rank: int) -> None:
        super().__init__()
        self.down: nn.Conv2d | nn.Linear
        self.up: nn.Conv2d | nn.Linear
        if kind == "conv2d":
            self.down = nn.Conv2d(features, rank, 1, bias=False)
            self.up = _zero(nn.Conv2d(rank, features, 1, bias=False))
        else:
            self.down = nn.Linear(features, rank, bias=False)
            self.up = _zero(nn.Linear(rank, features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (…, F) → the same shape."""
        out: Tensor = x + self.up(self.down(x))
        return out

    def linear_part(self) -> Tensor:
        """The (F, F) matrix M with ``forward(x) = x + M·x``, for folding into a linear host."""
        return self.up.weight.flatten(1) @ self.down.weight.flatten(1)


class ChannelScale(nn.Module):
    """Each channel or feature times ``1 + scale``, plus a shift."""

    def __init__(self, features: int, kind: SlotKind) -> None:
        super().__init__()
        self._spread = (features, 1, 1) if kind == "conv2d" else (features,)
        self.scale = nn.Parameter(nn.init.zeros_(torch.empty(features)))
        self.shift = nn.Parameter(nn.init.zeros_(torch.empty(features)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (…, F) → the same shape."""
        return x + x * self.scale.view(self._spread) + self.shift.view(self._spread)

    def linear_part(self) -> Tensor:
        """The (F, F) matrix M with ``forward(x) = x + M·x + shift``."""
        return self.scale.diag()


class AttentionHead(nn.Module):
    """Self-attention over the sequence, of few heads, beside the identity.

    Causal by default, so that in a language model no place sees what comes after it.
    """

    def __init__(
        self, features: int, kind: SlotKind, *, heads: int, width: int, causal: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = bool(causal)
        self.norm = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * heads * width, bias=False)
        self.project = _zero(nn.Linear(heads * width, features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, F) → the same shape."""
        n, t, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(n, t, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = x + self.project(seen.transpose(1, 2).reshape(n, t, -1))
        return out


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
