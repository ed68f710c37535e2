"""``nn.MultiheadAttention`` with fewer heads than its width has room for.

Torch's own divides its width by the number of its heads to have theirs, so it can't be without one
of them. Here the module stays the object that it is, with its parameters, hooks and name, and is
made one of another class, whose forward goes by the heads that are left. Once all of them are
back it is torch's own again.

``nn.TransformerEncoderLayer`` computes attention itself in eval mode, from the parameters of its
``self_attn`` and with heads of torch's width. It leaves that to a module that says
``_qkv_same_embed_dim`` is false, so this one says so. ``nn.TransformerEncoder`` asks its first
layer only before it makes one nested tensor of a padded batch: that is taken, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class PrunedAttention(nn.MultiheadAttention):
    """Some of an ``nn.MultiheadAttention``'s heads; made by ``keep_heads`` alone.

    Its parameters have the names of before and the features of the heads that are left:
    ``in_proj_weight`` (3·heads·head_dim, E), ``in_proj_bias`` (3·heads·head_dim), or
    ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` (heads·head_dim, …), ``bias_k`` and
    ``bias_v`` (1, 1, heads·head_dim), ``out_proj.weight`` (E, heads·head_dim).

    Attributes:
        num_heads: How many are left.
        kept_heads: Which, of those that it began with.
    """

    kept_heads: tuple[int, ...]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as torch's own would with the removed heads' columns of ``out_proj`` at zero.

        Args and shapes are those of ``nn.MultiheadAttention``. An ``attn_mask`` of three
        dimensions may be for the heads that are left, or for all there were: (N·heads, L, S).

        Returns:
            The output, of the query's shape; and, if they are needed, the weights of the heads that
            are left, or their mean: (N, heads, L, S) or (N, L, S), without N if unbatched.

        Raises:
            RuntimeError: A mask is of the wrong shape or dtype, or ``is_causal`` comes without one.
            ValueError: The batch sizes differ, or a nested tensor comes with a mask or with others.
        """
        if query.is_nested:
            if query is not key or key is not value:
                raise ValueError("a nested tensor can only be query, key and value in one")
            if key_padding_mask is not None or attn_mask is not None:
                raise ValueError("a nested tensor can't come with a mask")
            return self._attend_nested(query, need_weights, average_attn_weights)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        batched = query.dim() == 3
        q, k, v = (self._split(x, batched) for x in self._project(query, key, value))
        if not len(q) == len(k) == len(v):
            raise ValueError(f"batch sizes of query, key, value: {len(q)}, {len(k)}, {len(v)}")
        # As torch does it: the hint counts where nothing has to be added to a mask.
        hinted = is_causal and key_padding_mask is None and not need_weights
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]
        mask = self._merge(None if hinted else attn_mask, key_padding_mask, q, k.shape[2])
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, self._split(bias, True).expand(len(x), -1, -1, -1)], dim=2)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if mask is not None and mask.shape[3] < k.shape[2]:
            # Everybody may attend to what has been added.
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(2, 3)
            weights = (scores if mask is None else scores + mask).softmax(3)
            weights = F.dropout(weights, dropout) if dropout else weights
            heard = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            heard = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=hinted)
        # Not by calling out_proj: its hooks aren't called in torch's forward either.
        out = F.linear(self._join(heard, batched), self.out_proj.weight, self.out_proj.bias)
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values of all heads: (…, heads·head_dim) each."""
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        weights: Sequence[Any] = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is None
            else self.in_proj_weight.chunk(3)
        )
        biases: Sequence[Any] = (
            (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        )
        inputs = (query, key, value)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def _split(self, x: Tensor, batched: bool) -> Tensor:
        """(T, N, F), (N, T, F) if ``batch_first``, or (T, F) → (N, heads, T, head_dim)."""
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        if not batched:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _join(self, x: Tensor, batched: bool) -> Tensor:
        """(N, heads, T, head_dim) → the layout of the input, with all heads' features."""
        if not batched:
            return x[0].transpose(0, 1).flatten(1)
        return (x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1, 3)).flatten(2)

    def _merge(
        self, attention: Tensor | None, padding: Tensor | None, q: Tensor, sources: int
    ) -> Tensor | None:
        """One mask to add to the scores, that broadcasts to (N, heads, L, S)."""
        batch, heads, targets, _ = q.shape
        merged = None
        if attention is not None:
            shape = (targets, sources)
            everyone = self.embed_dim // self.head_dim
            allowed = [shape, (batch * heads, *shape), (batch * everyone, *shape)]
            if attention.shape not in allowed:
                words = " or ".join(str(each) for each in allowed)
                raise RuntimeError(f"attn_mask is {tuple(attention.shape)}; it should be {words}")
            merged = _to_add(attention, q.dtype)
            merged = merged.view(1 if merged.dim() == 2 else batch, -1, *shape)
            if merged.shape[1] not in (1, heads):
                merged = merged[:, list(self.kept_heads)]
        if padding is not None:
            if padding.shape != (batch, sources):
                found, wanted = tuple(padding.shape), (batch, sources)
                raise RuntimeError(f"key_padding_mask is {found}; it should be {wanted}")
            added = _to_add(padding, q.dtype)[:, None, None]
            merged = added if merged is None else merged + added
        return merged

    def _attend_nested(
        self, sequences: Tensor, need_weights: bool, average: bool
    ) -> tuple[Tensor, Tensor | None]:
        lengths = [len(sequence) for sequence in sequences.unbind()]
        padded = torch.nested.to_padded_tensor(sequences, 0.0)
        places = torch.arange(padded.shape[1], device=padded.device)
        padding = places >= torch.tensor(lengths, device=padded.device)[:, None]
        out, weights = self.forward(
            padded,
            padded,
            padded,
            key_padding_mask=padding,
            need_weights=need_weights,
            average_attn_weights=average,
        )
        rows = [row[:length] for row, length in zip(out, lengths, strict=True)]
        return torch.nested.as_nested_tensor(rows), weights


ATTENTIONS = (nn.MultiheadAttention, PrunedAttention)
"""Classes of modules that ``keep_heads`` takes: a subclass may compute anything."""


def heads_kept(module: nn.MultiheadAttention) -> list[int]:
    """Return which heads a module has, of those that it began with."""
    if isinstance(module, PrunedAttention):
        return list(module.kept_heads)
    return list(range(module.num_heads))


def keep_heads(module: nn.MultiheadAttention, heads: Sequence[int]) -> None:
    """Let a module go by these heads alone, of those that it began with; all: be torch's own.

    Its parameters are the caller's to cut.
    """
    whole = len(heads) * module.head_dim == module.embed_dim
    module.__class__ = nn.MultiheadAttention if whole else PrunedAttention
    module.num_heads = len(heads)
    module._qkv_same_embed_dim = whole and module.in_proj_weight is not None
    if isinstance(module, PrunedAttention):
        module.kept_heads = tuple(heads)
    else:
        vars(module).pop("kept_heads", None)


def _to_add(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that says what to leave out (True), or what to add, as the latter."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise RuntimeError(f"a mask is of {mask.dtype}; it should be of bool or a floating type")
    return mask
