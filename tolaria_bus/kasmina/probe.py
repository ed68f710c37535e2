"""The probe: how much of what came out of its slot was a seed's doing, sample by sample.

It measures in the very forward pass that is to be attributed, and costs no pass of its own. For a
seed with share alpha (1 from SHADOWING on) that got the features x_i of sample i and returned s_i,

    odds_i = alpha · ‖s_i - x_i‖ / ‖x_i‖            (2-norms over all that belongs to the sample)

is by how much it has moved the features. The host counts with odds of 1, so that a sample's shares
are odds / (1 + Σ odds) for the seeds and 1 / (1 + Σ odds) for the host. A seed that is (still) the
identity, or at alpha = 0, has no share of any sample.

It draws no random number and nothing waits for the device: the shares are tensors there, a pure
function of the model and the batch, so a step that is made again comes to the same ones.
"""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor

from tolaria_bus.kasmina.slot import Graft

# Features that are all zeros, moved by anything, have odds without bounds.
_MOST = 1e6


class Probe:
    """A context: what passes through the grafts inside it is what ``shares`` tells of.

    Args:
        grafts: Of the seeds that are tasks, by id.
    """

    def __init__(self, grafts: Mapping[str, Graft]) -> None:
        self._grafts = grafts
        self._taps: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __enter__(self) -> "Probe":
        for seed_id, graft in self._grafts.items():
            graft.tap = self._taps[seed_id] = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for graft in self._grafts.values():
            graft.tap = None

    @torch.no_grad()
    def shares(self, samples: int) -> dict[str, Tensor]:
        """Return each seed's share of each sample, float32, shape (samples,).

        Where the first dimension of the features isn't the samples (time first, tokens of all
        samples in a row), a seed has its mean share of every one. Of several passes through one
        slot the mean counts. A seed that nothing passed through has no share.
        """
        odds = {
            seed_id: torch.stack([_odds(x, out, samples) for x, out in tap]).mean(0)
            * self._grafts[seed_id].alpha
            for seed_id, tap in self._taps.items()
            if tap
        }
        if not odds:
            return {}
        whole = 1.0 + torch.stack([*odds.values()]).sum(0)
        return {seed_id: each / whole for seed_id, each in odds.items()}


def _odds(x: Tensor, out: Tensor, samples: int) -> Tensor:
    """‖out - x‖ / ‖x‖ of each sample: float32, shape (samples,)."""
    x, out = x.detach().float(), out.detach().float()
    moved, whole = _norms(out - x), _norms(x)
    odds = (moved / whole.clamp_min(torch.finfo(whole.dtype).tiny)).clamp_max(_MOST)
    return odds if len(odds) == samples else odds.mean().expand(samples)


def _norms(x: Tensor) -> Tensor:
    """The 2-norm over all but the first dimension."""
    rest = tuple(range(1, x.dim()))
    return x.abs() if not rest else torch.linalg.vector_norm(x, dim=rest)
