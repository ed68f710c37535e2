"""Handlers by name."""

from __future__ import annotations

import sys

import pytest
import torch
from torchjd.aggregation import IMTLG, MGDA, AlignedMTL, Krum

from tolaria_bus.tolaria.engine.aggregation import find
from tolaria_bus.tolaria.engine.aggregation.handlers import (
    PCGrad,
    TorchJDMatrix,
    TorchJDWeights,
    UnknownHandler,
)


def rows(tasks: int = 3) -> torch.Tensor:
    return torch.randn(tasks, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_none_is_no_handler_and_pcgrad_is_ours() -> None:
    assert find("none") is None
    assert isinstance(find("pcgrad"), PCGrad)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mgda", MGDA()),
        ("imtlg", IMTLG()),
        ("alignedmtl", AlignedMTL()),
        ("krum:n_byzantine=0", Krum(0)),
    ],
)
def test_torchjds_that_weigh_get_the_gramian_and_come_to_torchjds_aggregate(name, theirs) -> None:
    handler = find(name)
    assert isinstance(handler, TorchJDWeights)
    found = handler.coefficients(rows() @ rows().T, 0) @ rows()
    torch.testing.assert_close(found, theirs(rows()))


def test_others_get_the_gradients_and_numbers_behind_the_name_go_to_the_constructor() -> None:
    handler = find("trimmedmean:trim_number=1")
    assert isinstance(handler, TorchJDMatrix)
    assert torch.equal(handler.combine(rows(), 0), rows().median(0).values)


def test_what_draws_draws_by_the_seed_and_leaves_the_global_generators_alone() -> None:
    handler = find("random")
    assert isinstance(handler, TorchJDMatrix)
    before = torch.get_rng_state()
    first, again, other = (handler.combine(rows(), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pcgrads", r"there are none, pcgrad, .*mgda"),
        ("PCGrad!", "expected a name"),
        ("krum", r"n_byzantine.* \(it takes: n_byzantine, n_selected\)"),
        ("mgda:epsilon", r"'epsilon' is not argument=number"),
        ("mgda:epsilon=much", "could not convert"),
        ("gradvac", "keeps a state between steps that no checkpoint has"),
        ("aggregator", "there are none, pcgrad"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(name, words) -> None:
    with pytest.raises(UnknownHandler, match=words) as error:
        find(name)
    assert "\n" not in str(error.value)


def test_without_torchjd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UnknownHandler, match=r"pip install 'tolaria-bus\[aggregators\]'"):
        find("mgda")
    assert isinstance(find("pcgrad"), PCGrad)
