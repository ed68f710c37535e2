"""A byte-level language model on the text of Python's own help topics: nothing to download.

A causal transformer of any size from 50 thousand parameters up, so that it also serves to measure
the trainer. The text (about 460 kB) comes with Python and differs a little between its versions.
"""

import math
import re
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

from tolaria_bus.kasmina import HeadLayout, SeedSlot
from tolaria_bus.tolaria.engine.job import JobError
from tolaria_bus.tolaria.engine.optimizer import default_optimizer

_BYTES = 256
_HELD_OUT = 0.1
_HEAD_WIDTH = 32
_MAX_WIDTH = 2048
_MAX_DEPTH = 24
# Width for each block of depth at which the search for a size aims.
_ASPECT = 32


class Block(nn.Module):
    """Attention and a two-layer perceptron, each beside the identity, then a seed slot."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // _HEAD_WIDTH
        self.head_layout = HeadLayout(width=_HEAD_WIDTH, into={"qkv": 3}, out="out")
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        self.slot = SeedSlot(width, kind="sequence")

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → the same shape; a place sees itself and what came before it."""
        n, t, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(n, t, 3, self.heads, _HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        x = x + self.out(seen.transpose(1, 2).reshape(n, t, -1))
        inner = F.gelu(self.expand(self.norm_mlp(x)))
        x = x + F.dropout(self.project(inner), self.dropout, self.training)
        passed: Tensor = self.slot(x)
        return passed


class ByteTransformer(nn.Module):
    """Predicts each next byte. The output shares its weights with the embedding of the input."""

    def __init__(self, width: int, depth: int, context: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_BYTES, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.embedding, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        for name, weight in self.named_parameters():
            # What is added to the stream of every block: small, so that depth doesn't blow it up.
            if name.endswith(("out.weight", "project.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth))

    def forward(self, text: Tensor) -> Tensor:
        """(N, T) bytes → (N, T, 256) logits of the next byte."""
        x = self.embedding(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


class BytesLM:
    """The job; every argument is an option (``--option parameters=5M``).

    Args:
        parameters: The model's size, about: ``200k``, ``1M``, ``25M``. ``width`` and ``depth``, in
            so far as they are given, win.
        width: A multiple of 32.
        depth: Blocks.
        context: How many bytes it sees.
        batch_size: Windows of ``context`` bytes in a batch.
        epochs: How often it goes through the text.
        lr: AdamW's base rate.
        dropout: Off by default.
        schedule: ``constant``, ``cosine`` or ``step``.
    """

    name = "bytes_lm"

    def __init__(
        self,
        parameters: str = "200k",
        width: int | None = None,
        depth: int | None = None,
        context: int = 128,
        batch_size: int = 32,
        epochs: int = 3,
        lr: float = 1e-3,
        dropout: float = 0.0,
        schedule: str = "cosine",
    ) -> None:
        if width is not None and (width < _HEAD_WIDTH or width % _HEAD_WIDTH):
            raise JobError(f"bytes_lm: width is {width}; it must be a multiple of {_HEAD_WIDTH}")
        if depth is not None and depth < 1:
            raise JobError(f"bytes_lm: depth is {depth}; it must be 1 or more")
        if not 1 <= context <= 4096:
            raise JobError(f"bytes_lm: context is {context}; it must be from 1 to 4096")
        if not 0 <= dropout < 1:
            raise JobError(f"bytes_lm: dropout is {dropout}; it must be from 0 to below 1")
        target = parse_size(parameters)
        self.width, self.depth = _shape(target, width, depth, context)
        self.context = context
        self.batch_size = batch_size
        self.epochs = epochs
        self.lr = lr
        self.dropout = dropout
        self.schedule = {"kind": schedule, "warmup_steps": 20}

    def model(self) -> nn.Module:
        """Make the transformer."""
        return ByteTransformer(self.width, self.depth, self.context, self.dropout)

    def train_data(self) -> TensorDataset:
        """Windows of the first nine tenths, end to end; each has one byte more than the context."""
        return _windows(_text()[: _held_out_from()], self.context)

    def validation_data(self) -> TensorDataset:
        """Windows of the last tenth."""
        return _windows(_text()[_held_out_from() :], self.context)

    def loss(self, model: nn.Module, batch: list[Tensor], reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats: the mean, or (windows, bytes) of each byte."""
        window = batch[0].long()
        logits = model(window[:, :-1])
        targets = window[:, 1:]
        found = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return found if reduction == "mean" else found.view(targets.shape)

    def accuracy(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        """Share of next bytes guessed right."""
        window = batch[0].long()
        right: Tensor = model(window[:, :-1]).argmax(-1) == window[:, 1:]
        return right.float().mean()

    def optimizer(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW."""
        return default_optimizer(params, lr=self.lr)


def parse_size(text: str) -> int:
    """``200k`` → 200,000; ``1.5M`` → 1,500,000.

    Raises:
        JobError: it isn't such a text, or not from 20 thousand to a thousand million.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmKM]?)", text.strip())
    size = 0.0
    if match:
        size = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6}[match[2].lower()]
    if not 20e3 <= size <= 1e9:
        raise JobError(
            f"bytes_lm: parameters is {text!r}; it must be a size such as 200k or 5M, "
            "from 20k to 1000M"
        )
    return int(size)


def parameter_count(width: int, depth: int, context: int) -> int:
    """How many parameters a ``ByteTransformer`` has."""
    block = 12 * width * width + 13 * width
    return depth * block + (_BYTES + context + 2) * width


def _shape(target: int, width: int | None, depth: int | None, context: int) -> tuple[int, int]:
    """Return the width and depth that come near ``target`` in a usual proportion."""
    widths = [width] if width else range(_HEAD_WIDTH, _MAX_WIDTH + 1, _HEAD_WIDTH)
    depths = [depth] if depth else range(1, _MAX_DEPTH + 1)

    def cost(shape: tuple[int, int]) -> float:
        size = math.log(parameter_count(*shape, context) / target)
        # Far from the size counts ten times as much as an unusual proportion.
        return 10 * abs(size) + abs(math.log(shape[0] / (_ASPECT * shape[1])))

    return min(((w, d) for w in widths for d in depths), key=cost)


@cache
def _text() -> Tensor:
    from pydoc_data.topics import topics

    joined = "\n\n".join(f"{name}\n{topics[name]}" for name in sorted(topics))
    return torch.frombuffer(bytearray(joined.encode()), dtype=torch.uint8)


def _held_out_from() -> int:
    return int(len(_text()) * (1 - _HELD_OUT))


def _windows(text: Tensor, context: int) -> TensorDataset:
    # Overlapping views of one text: an epoch's data takes no memory of its own.
    return TensorDataset(text.unfold(0, context + 1, context))
