"""Everything of a run that must survive, in one object, and its way out to bytes and back.

A step is a pure function of this state and the batch at ``data.position``; so a state that comes
back whole, bit for bit, is all that exact recovery needs besides the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tolaria_bus.kasmina import Kasmina
from tolaria_bus.leyline import JournalRecord, RunMode
from tolaria_bus.leyline.codec import from_json, to_json
from tolaria_bus.safety.breakers import Breakers
from tolaria_bus.tolaria.engine.data import TrainingBatches
from tolaria_bus.tolaria.engine.learning_rate import LearningRateController
from tolaria_bus.tolaria.engine.loss_watch import LossReading, LossWatch
from tolaria_bus.tolaria.engine.optimizer import OptimizerManager
from tolaria_bus.tolaria.engine.precision import StepState
from tolaria_bus.tolaria.recovery.buffers import TensorBuffers, needed_bytes
from tolaria_bus.tolaria.recovery.generators import restore_generators, save_generators
from tolaria_bus.tolaria.recovery.plain import plain_names
from tolaria_bus.tolaria.recovery.sections import Section, pack, unpack


class StateMismatch(ValueError):
    """A saved state doesn't fit this job: another model, another optimizer. One line says what."""


@dataclass
class TrainingState:
    """The state of a run, owned by the training thread.

    Attributes:
        model: With its seeds.
        optimizer: Owner of the optimizer object and its state.
        learning_rate: The one authority over learning rates.
        kasmina: The seeds' structure, stages and parameters.
        data: The order of the data and the position in it.
        watch: Running statistics of the loss.
        engine: Of the step itself: what has failed and is off, the scale of fp16 gradients.
        breakers: What is refused because it kept failing.
        mode: Running, paused, halted, conservative, and why.
        seed: Of the run.
        step: Optimizer steps done on the live timeline.
        timeline: Rises by one with each rollback; starts at 1.
        last_loss: The newest training loss that is known, one step old; NaN before the first.
        last_loss_step: The step that it is of.
        epoch_loss_sum: Of the losses known of the epoch that goes on.
        epoch_loss_count: How many those are.
        epochs_ended: Epochs whose end was passed, with all that belongs to it.
        best_accuracy: The best validation accuracy so far, 0 to 1; 0 before the first.
        sections: What others own and must survive too, by name. All are there before the state is
            restored; a section that a checkpoint hasn't got stays as it is.
    """

    model: nn.Module
    optimizer: OptimizerManager
    learning_rate: LearningRateController
    kasmina: Kasmina
    data: TrainingBatches
    watch: LossWatch
    seed: int
    engine: StepState = field(default_factory=StepState)
    breakers: Breakers = field(default_factory=Breakers)
    mode: RunMode = field(default_factory=RunMode)
    step: int = 0
    timeline: int = 1
    last_loss: float = float("nan")
    last_loss_step: int = 0
    epoch_loss_sum: float = 0.0
    epoch_loss_count: int = 0
    epochs_ended: int = 0
    best_accuracy: float = 0.0
    sections: dict[str, Section] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs of data that have been passed."""
        return self.data.position // self.data.steps_per_epoch

    def stamp(self, record: JournalRecord) -> JournalRecord:
        """Write into a journal record at which fence it takes effect: here. Returns it."""
        record.timeline, record.step, record.epoch = self.timeline, self.step, self.epoch
        return record

    def note(self, reading: LossReading) -> None:
        """Take a loss into the statistics."""
        self.last_loss, self.last_loss_step = reading.loss, reading.step
        self.epoch_loss_sum += reading.loss
        self.epoch_loss_count += 1

    @property
    def epoch_ends(self) -> bool:
        """Has the last batch of an epoch been trained on, and is its end still to be passed?"""
        epoch, rest = divmod(self.data.position, self.data.steps_per_epoch)
        return not rest and epoch > self.epochs_ended

    def end_epoch(self) -> float:
        """Pass the end of an epoch: its mean training loss. The next one starts with nothing."""
        mean = self.epoch_loss_sum / max(self.epoch_loss_count, 1)
        self.epoch_loss_sum, self.epoch_loss_count = 0.0, 0
        self.epochs_ended = self.epoch
        return mean

    def enter(self, position: int, timeline: int) -> None:
        """Go on with the batch at a position on another timeline: after a rollback.

        The mean loss of the epoch there counts from here on. Where the position is the end of an
        epoch, that is still to be passed.
        """
        self.timeline = timeline
        self.data.seek(position, timeline)
        self.epoch_loss_sum, self.epoch_loss_count = 0.0, 0
        self.epochs_ended = max(position - 1, 0) // self.data.steps_per_epoch


def capture(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A private copy of the whole state, in memory of its own.

    Returns:
        Tensors on the CPU by name (``model.*``, ``optimizer.*``, ``random.*``), and the rest,
        JSON-able.
    """
    buffers = TensorBuffers()
    meta = capture_into(state, buffers)
    return buffers.tensors, meta


def capture_into(state: TrainingState, buffers: TensorBuffers) -> dict[str, Any]:
    """Copy the whole state into memory that is there: this is what a fence pays for a checkpoint.

    Args:
        state: At a fence.
        buffers: Nobody else may be using them; ``buffers.tensors`` has the tensors afterwards.

    Returns:
        The rest, JSON-able.

    Raises:
        ValueError: A tensor has no plain bytes, or a section or loader holds what can't be saved.
        JobError: The loader of the training data failed to tell its state.
    """
    tensors, meta = _survey(state)
    buffers.fill(tensors)
    return meta


def state_bytes(state: TrainingState) -> int:
    """About the memory that a copy of the state takes: without sections and loaders."""
    optimizer_tensors, _ = state.optimizer.export()
    generators, _ = save_generators()
    parts = (_model_tensors(state.model), optimizer_tensors, generators)
    return sum(needed_bytes(part) for part in parts)


def _survey(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors themselves, not copies, and the rest."""
    tensors = {f"model.{name}": tensor for name, tensor in _model_tensors(state.model).items()}
    optimizer_tensors, optimizer_meta = state.optimizer.export()
    tensors.update({f"optimizer.{name}": tensor for name, tensor in optimizer_tensors.items()})
    generators, generator_meta = save_generators()
    tensors.update(generators)
    data, data_tensors = pack(state.data.own_state(), "data")
    tensors.update(data_tensors)
    sections = {}
    for name, section in state.sections.items():
        value, section_tensors = pack(section.save(), f"section.{name}")
        tensors.update(section_tensors)
        sections[name] = {"version": section.version, "state": value}
    meta = {
        "step": state.step,
        "timeline": state.timeline,
        "seed": state.seed,
        "data_position": state.data.position,
        "data": data,
        "optimizer": optimizer_meta,
        "learning_rate": state.learning_rate.state_dict(),
        "kasmina": state.kasmina.structure(),
        "state_dict": plain_names(state.model),
        "watch": state.watch.state_dict(),
        "engine": state.engine.state_dict(),
        "breakers": state.breakers.state_dict(),
        # As text: JSON has no NaN.
        "losses": [
            repr(state.last_loss),
            state.last_loss_step,
            repr(state.epoch_loss_sum),
            state.epoch_loss_count,
        ],
        "epochs_ended": state.epochs_ended,
        "best_accuracy": state.best_accuracy,
        "mode": to_json(state.mode),
        "generators": generator_meta,
        "sections": sections,
    }
    return tensors, meta


def restore(state: TrainingState, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Make ``state`` what :func:`capture` saw, in place: structure first, then values.

    Raises:
        StateMismatch: The saved state isn't of this model or optimizer, or has a section that isn't
            known here or is of a newer program; nothing was changed but the structure of seeds.
        JobError: The loader of the training data doesn't take its state back.
    """
    sections = meta.get("sections", {})
    _check_sections(state.sections, sections)
    state.kasmina.rebuild(meta["kasmina"])
    saved = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    _make_room(state.model, saved)
    present = _model_tensors(state.model)
    _check_fit(present, saved)
    with torch.no_grad():
        torch._foreach_copy_([present[name] for name in saved], list(saved.values()))
    state.optimizer.load(
        {
            name.removeprefix("optimizer."): tensor
            for name, tensor in tensors.items()
            if name.startswith("optimizer.")
        },
        meta["optimizer"],
    )
    state.learning_rate.load_state_dict(meta["learning_rate"])
    state.watch.load_state_dict(meta["watch"])
    # Checkpoints of version 0.1 have neither.
    state.engine.load_state_dict(meta.get("engine", {}))
    state.breakers.load_state_dict(meta.get("breakers", {}))
    last, last_step, total, count = meta["losses"]
    state.last_loss, state.last_loss_step = float(last), last_step
    state.epoch_loss_sum, state.epoch_loss_count = float(total), count
    # Older checkpoints don't say; at an epoch's end they were the last thing to be done.
    passed = meta["data_position"] // state.data.steps_per_epoch
    state.epochs_ended = meta.get("epochs_ended", passed)
    state.best_accuracy = meta.get("best_accuracy", 0.0)
    state.mode.CopyFrom(from_json(meta["mode"], RunMode))
    state.step = meta["step"]
    state.timeline = meta["timeline"]
    own = unpack(meta.get("data", {}), tensors)
    state.data.restore(meta["data_position"], state.timeline, own)
    for name, saved_section in sections.items():
        value = unpack(saved_section["state"], tensors)
        state.sections[name].load(value, saved_section["version"])
    # Last: whatever was called before may have drawn.
    restore_generators(tensors, meta["generators"])


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    # state_dict() would leave out non-persistent buffers; those influence training as well.
    named: dict[str, Tensor] = dict(model.named_parameters())
    named.update(model.named_buffers())
    return named


def _make_room(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give the model those buffers that only came, or grew, as it ran."""
    device = next(model.parameters()).device
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, buffer in module._buffers.items():
            tensor = saved.get(f"{path}.{leaf}" if path else leaf)
            if tensor is not None and (buffer is None or buffer.shape != tensor.shape):
                where = device if buffer is None else buffer.device
                module._buffers[leaf] = torch.empty_like(tensor, device=where)


def _check_fit(present: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    missing = sorted(present.keys() - saved.keys())
    foreign = sorted(saved.keys() - present.keys())
    if missing or foreign:
        raise StateMismatch(
            f"the saved state has no {missing[:3]} and has {foreign[:3]} beside this model's"
            if missing
            else f"the saved state has {foreign[:3]}, which this model has not"
        )
    for name, tensor in saved.items():
        here = present[name]
        if here.shape != tensor.shape or here.dtype != tensor.dtype:
            raise StateMismatch(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} in the saved state, "
                f"{here.dtype} {tuple(here.shape)} in this model"
            )


def _check_sections(present: Mapping[str, Section], saved: Mapping[str, Any]) -> None:
    for name, section in saved.items():
        if name not in present:
            raise StateMismatch(
                f"the saved state has a section {name!r}; this run has {sorted(present)}"
            )
        if section["version"] > present[name].version:
            raise StateMismatch(
                f"the saved state's section {name!r} is of version {section['version']}; "
                f"this program reads {present[name].version}"
            )
