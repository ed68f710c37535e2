"""Torch's own attention without some of its heads computes what it would with them silenced."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tolaria_bus.kasmina import Garden, Moment

HEADS, WIDTH, QUERIES, KEYS, BATCH = 4, 3, 5, 6, 2
KINDS: dict[str, dict[str, Any]] = {
    "packed": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other keys and values": {"kdim": 7, "vdim": 10},
    "other keys, no bias": {"kdim": 7, "bias": False, "batch_first": True},
    "learned key": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True, "batch_first": True},
    "all of them": {"vdim": 10, "add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}
MASKS = (
    "none",
    "padding",
    "float padding",
    "causal",
    "hinted",
    "float",
    "by head",
    "float by head",
    "both",
    "by head and padding",
)


def masks(kind: str, keys: int) -> dict[str, Any]:
    """Arguments for a batched call; in "by head" a mask for each of all heads."""
    causal = torch.ones(QUERIES, keys).triu(1).bool()
    padding = torch.zeros(BATCH, keys, dtype=torch.bool)
    padding[0, 3:] = padding[1, -1:] = True
    by_head = torch.rand(BATCH * HEADS, QUERIES, keys) < 0.3
    by_head[..., 0] = False
    some = torch.randn(QUERIES, keys, dtype=torch.float64)
    each = torch.randn(BATCH * HEADS, QUERIES, keys, dtype=torch.float64)
    found: dict[str, dict[str, Any]] = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "float padding": {"key_padding_mask": torch.randn(BATCH, keys, dtype=torch.float64)},
        "causal": {"attn_mask": causal},
        "hinted": {"attn_mask": causal, "is_causal": True},
        "float": {"attn_mask": some},
        "by head": {"attn_mask": by_head},
        "float by head": {"attn_mask": each},
        "both": {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True},
        "by head and padding": {"attn_mask": by_head, "key_padding_mask": padding},
    }
    return found[kind]


def pruned(whole: nn.MultiheadAttention, fraction: float = 0.5) -> tuple[Any, Any, list[int]]:
    """Return it with heads silenced by hand, it without them, and which stayed."""
    model = nn.Sequential(copy.deepcopy(whole))
    garden = Garden(model)
    plan = garden.plan_prune("0", fraction, {"impact": 1e6})
    garden.prune(plan, Moment(0, held_out=lambda: 1.0))
    silenced = copy.deepcopy(whole)
    gone = [head for head in range(HEADS) if head not in plan.keep]
    with torch.no_grad():
        silenced.out_proj.weight.view(-1, HEADS, WIDTH)[:, gone] = 0.0
    return silenced, model[0], list(plan.keep)


def attention(**options: Any) -> nn.MultiheadAttention:
    made = nn.MultiheadAttention(HEADS * WIDTH, HEADS, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    return made


def inputs(whole: Any, *, alone: bool, batched: bool) -> list[Tensor]:
    """Query, key and value: one tensor if it is self-attention, three of other lengths if not."""
    lengths = [QUERIES] if alone else [QUERIES, KEYS, KEYS]
    widths = [whole.embed_dim, whole.kdim, whole.vdim]
    made = []
    for length, width in zip(lengths, widths, strict=False):
        shape = [BATCH, length] if whole.batch_first else [length, BATCH]
        shape = [*(shape if batched else [length]), width]
        made.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    return made if len(made) == 3 else made * 3


def close(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_hears_what_torchs_own_does_with_the_heads_silenced(kind: str, mask: str) -> None:
    torch.default_generator.manual_seed(0)
    whole = attention(**KINDS[kind])
    silenced, left, kept = pruned(whole)
    assert type(left) is not nn.MultiheadAttention
    for alone in (True, False) if whole.kdim == whole.vdim else (False,):
        given = inputs(whole, alone=alone, batched=True)
        arguments = masks(mask, given[1].shape[1 if whole.batch_first else 0])
        for training in (True, False):
            silenced.train(training)
            left.train(training)
            with torch.set_grad_enabled(training):
                plain, none = silenced(*given, need_weights=False, **arguments)
                out, nothing = left(*given, need_weights=False, **arguments)
                each = silenced(*given, average_attn_weights=False, **arguments)
                own = left(*given, average_attn_weights=False, **arguments)
                mean = left(*given, **arguments)
            assert none is nothing is None
            for found, wanted in [(out, plain), (own[0], each[0]), (mean[0], each[0])]:
                close(found, wanted)
            close(own[1], each[1][:, kept])
            close(mean[1], each[1][:, kept].mean(1))
            if training:
                close(
                    torch.autograd.grad(out.square().sum(), given[0]),
                    torch.autograd.grad(plain.square().sum(), given[0]),
                )


@pytest.mark.parametrize("kind", ["packed", "batch first", "all of them"])
def test_of_one_sequence_without_a_batch_it_hears_the_same(kind: str) -> None:
    torch.default_generator.manual_seed(0)
    whole = attention(**KINDS[kind])
    silenced, left, kept = pruned(whole)
    given = inputs(whole, alone=False, batched=False)
    padding = torch.tensor([False] * (KEYS - 2) + [True] * 2)
    by_head = torch.rand(HEADS, QUERIES, KEYS) < 0.3
    by_head[..., 0] = False
    for arguments in [{}, {"key_padding_mask": padding}, {"attn_mask": by_head}]:
        wanted, weights = silenced(*given, average_attn_weights=False, **arguments)
        found, own = left(*given, average_attn_weights=False, **arguments)
        close(found, wanted)
        close(own, weights[kept])
        close(left(*given, need_weights=False, **arguments)[0], wanted)


def test_a_mask_by_head_may_be_for_those_that_are_left_and_others_are_refused() -> None:
    torch.default_generator.manual_seed(0)
    _, left, kept = pruned(attention(batch_first=True))
    given = inputs(left, alone=False, batched=True)
    mask = torch.randn(BATCH, HEADS, QUERIES, KEYS, dtype=torch.float64)
    whole, part = mask.flatten(0, 1), mask[:, kept].flatten(0, 1)
    close(left(*given, attn_mask=part), left(*given, attn_mask=whole))
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"attn_mask": whole[:3]}, r"attn_mask is \(3, 5, 6\); it should be \(5, 6\) or \(4, 5, 6"),
        ({"attn_mask": mask[0, 0].long()}, r"of torch\.int64; it should be of bool or a floating"),
        ({"key_padding_mask": mask[0, 0]}, r"is \(5, 6\); it should be \(2, 6\)"),
        ({"is_causal": True}, "is_causal is a hint about attn_mask"),
    ]
    for wrong, words in wrongs:
        with pytest.raises(RuntimeError, match=words):
            left(*given, **wrong)
    with pytest.raises(ValueError, match="batch sizes of query, key, value: 2, 1, 2"):
        left(given[0], given[1][:1], given[2])


def test_weights_are_dropped_as_often_as_torch_does_and_in_training_alone() -> None:
    torch.default_generator.manual_seed(0)
    _, left, _ = pruned(attention(dropout=0.25, batch_first=True))
    x = torch.randn(40, 30, HEADS * WIDTH, dtype=torch.float64)
    weights = left(x, x, x, average_attn_weights=False)[1]
    assert float((weights == 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    outs = [left(x, x, x, need_weights=False)[0] for _ in range(2)]
    assert not torch.equal(*outs)
    left.eval()
    outs = [left(x, x, x, need_weights=False)[0] for _ in range(2)]
    assert torch.equal(*outs)
