"""One worker: the bus and the training thread in one process."""

from tolaria_bus.tolaria.summary import Progress, RunSummary
from tolaria_bus.worker.run import run_worker
from tolaria_bus.worker.spec import WorkerSpec

__all__ = ["Progress", "RunSummary", "WorkerSpec", "run_worker"]
