"""What bitwise equality depends on beside the state: recorded at start, compared at a resume."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device, threads and determinism flags of this process."""
    found = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda or ""
    else:
        found["cpu"] = torch.backends.cpu.get_cpu_capability()
    return found


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is not as it was, for people: ``threads 2 -> 4``; empty if nothing."""
    return ", ".join(
        f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )
