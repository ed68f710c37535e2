"""What happens inside a step: the job, data, forward and backward, learning rates, optimizer.

Everything here runs in the training thread, knows no bus and reads no clock: a step is a pure
function of the training state and the batch at a position.
"""

from tolaria_bus.tolaria.engine.batch import to_device
from tolaria_bus.tolaria.engine.data import BatchStream, ValidationBatches, validation_batches
from tolaria_bus.tolaria.engine.hyperparameters import OptimizerRefused
from tolaria_bus.tolaria.engine.job import (
    Job,
    JobData,
    JobError,
    build_data,
    build_model,
    load_job,
    view,
)
from tolaria_bus.tolaria.engine.learning_rate import Correction, LearningRateController
from tolaria_bus.tolaria.engine.loss_watch import LossReading, LossWatch, Verdict
from tolaria_bus.tolaria.engine.optimizer import (
    OptimizerManager,
    OptimizerStateMismatch,
    RebuildFailed,
    default_optimizer,
)
from tolaria_bus.tolaria.engine.options import StepOptions
from tolaria_bus.tolaria.engine.precision import StepState
from tolaria_bus.tolaria.engine.schedule import LearningRateRefused, Schedule
from tolaria_bus.tolaria.engine.step import TrainStep
from tolaria_bus.tolaria.engine.validation import Validation, validate

__all__ = [
    "BatchStream",
    "Correction",
    "Job",
    "JobData",
    "JobError",
    "LearningRateController",
    "LearningRateRefused",
    "LossReading",
    "LossWatch",
    "OptimizerManager",
    "OptimizerRefused",
    "OptimizerStateMismatch",
    "RebuildFailed",
    "Schedule",
    "StepOptions",
    "StepState",
    "TrainStep",
    "Validation",
    "ValidationBatches",
    "Verdict",
    "build_data",
    "build_model",
    "default_optimizer",
    "load_job",
    "to_device",
    "validate",
    "validation_batches",
    "view",
]
