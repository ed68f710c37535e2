"""Sizes and times in a few letters."""

from __future__ import annotations


def size(count: int) -> str:
    """``4.2 MB``; a thousand to the next unit."""
    amount, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.3g} {unit}"


def milliseconds(value: float) -> str:
    """``0.012``, ``4.81``, ``231``: three digits, never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """``0.25 s``, ``17 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
