"""GPUs as NVIDIA's management library sees them, without touching CUDA.

Needs the package ``nvidia-ml-py`` (``pip install 'tolaria-bus[gpu]'``) and a driver; without either
there are no GPUs to watch, and that is said once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tolaria_bus.weatherlight.resources import Reading


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one time.

    Attributes:
        name: ``gpu0 NVIDIA H100``.
        memory: Of the device.
        celsius: Its temperature.
        slow_down_celsius: Where the device begins to slow itself down; 0 if it doesn't say.
        utilization: Share of time in which a kernel ran, 0 to 1.
    """

    name: str
    memory: Reading
    celsius: float
    slow_down_celsius: float
    utilization: float


class NoGpus(Exception):
    """There are none to watch; one line says why."""


@contextmanager
def gpus() -> Iterator[Nvml]:
    """Open the library.

    Raises:
        NoGpus: See there.
    """
    try:
        import pynvml
    except ImportError:
        raise NoGpus("nvidia-ml-py is not installed: pip install 'tolaria-bus[gpu]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpus(f"no driver: {error}") from None
    try:
        yield Nvml(pynvml)
    finally:
        pynvml.nvmlShutdown()


class Nvml:
    """The library, open.

    Attributes:
        lost: What each GPU said that couldn't be read the last time, by its number.
    """

    def __init__(self, library: Any) -> None:
        self.lost: dict[int, str] = {}
        self._nvml = library

    def read(self) -> list[Gpu]:
        """Every GPU. May wait for a driver that hangs: not for an event loop's thread.

        One that fell off the bus is in ``lost`` instead.
        """
        found = []
        self.lost = {}
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                found.append(self._one(index))
            except self._nvml.NVMLError as error:
                self.lost[index] = str(error)
        return found

    def _one(self, index: int) -> Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        shown = f"gpu{index} {name.decode() if isinstance(name, bytes) else name}"
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Gpu(
            name=shown,
            memory=Reading("gpu_memory", shown, int(memory.used), int(memory.total)),
            celsius=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            slow_down_celsius=self._slow_down(handle),
            utilization=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0,
        )

    def _slow_down(self, handle: Any) -> float:
        nvml = self._nvml
        try:
            kind = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            return float(nvml.nvmlDeviceGetTemperatureThreshold(handle, kind))
        except nvml.NVMLError:
            return 0.0
