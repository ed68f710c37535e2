"""What of the step's machinery must survive: fallbacks, and the scale of fp16 gradients."""

from collections.abc import Mapping
from typing import Any

import torch

COMPILE = "compile"
AMP = "amp"
ATTRIBUTION = "attribution"


class StepState:
    """The state of a step that isn't in model or optimizer; JSON-able, part of each checkpoint.

    Attributes:
        fallen: Features that failed and are off since, and why.
        scaler: Of fp16 gradients; None where there are none.
        version: Rises when the state is replaced: what was proven to work has to be proven again.
    """

    def __init__(self, device: torch.device | None = None, *, fp16: bool = False) -> None:
        self.fallen: dict[str, str] = {}
        self.version = 0
        self.scaler = torch.amp.GradScaler(device.type if device else "cpu") if fp16 else None

    def fall_back(self, feature: str, why: str) -> None:
        """Do without a feature from now on."""
        self.fallen[feature] = why
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state. Waits for the device where there is a scaler."""
        scale = self.scaler.state_dict() if self.scaler is not None else None
        return {"fallen": dict(self.fallen), "scaler": scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned; an empty one is that of the start."""
        self.fallen = dict(state.get("fallen", {}))
        self.version += 1
        if self.scaler is not None:
            saved = state.get("scaler") or torch.amp.GradScaler("cpu").state_dict()
            self.scaler.load_state_dict(saved)
