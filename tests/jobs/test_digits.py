import sys

import pytest
import torch

from tolaria_bus.jobs import digits
from tolaria_bus.kasmina import Garden
from tolaria_bus.tolaria.engine import (
    BatchStream,
    JobError,
    LearningRateController,
    LossWatch,
    OptimizerManager,
    TrainStep,
    ValidationBatches,
    Verdict,
    build_data,
    build_model,
    load_job,
    validate,
)

CPU = torch.device("cpu")


def test_the_split_is_stratified_whole_and_always_the_same():
    digits._split.cache_clear()
    first = digits._split()
    digits._split.cache_clear()
    train, held_out = digits._split()
    assert len(train) + len(held_out) == 1797
    assert all(torch.equal(a, b) for a, b in zip(first[1].tensors, held_out.tensors, strict=True))
    shares = torch.bincount(held_out.tensors[1]) / (
        torch.bincount(train.tensors[1]) + torch.bincount(held_out.tensors[1])
    )
    assert bool(((shares > 0.19) & (shares < 0.21)).all())


def test_options_reach_the_net_and_wrong_ones_are_refused():
    job = load_job("digits", {"width": "8", "batch_size": "16", "epochs": "3", "lr": "0.01"})
    assert (job.batch_size, job.epochs, job.schedule.kind) == (16, 3, "cosine")
    model = build_model(job, 0)
    assert [s.features for s in Garden(model).slots()] == [8]
    assert OptimizerManager(job.optimizer, model).param_groups[0]["lr"] == 0.01
    for options, words in [
        ({"width": "0"}, "1 or more"),
        ({"dropout": "1"}, "dropout is 1.0"),
        ({"colour": "red"}, "it takes: width, batch_size, epochs, lr, dropout, schedule"),
    ]:
        with pytest.raises(JobError, match=words):
            load_job("digits", options)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    digits._split.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(JobError, match=r"pip install 'tolaria-bus\[examples\]'") as error:
        build_data(load_job("digits"), 0)
    assert "\n" not in str(error.value)


def test_it_learns_the_digits():
    job = load_job("digits", {"epochs": "12"})
    model = build_model(job, 0)
    data = build_data(job, 0)
    stream = BatchStream(data.train, job.batch_size, 0)
    manager = OptimizerManager(job.optimizer, model)
    total = job.epochs * stream.steps_per_epoch
    rates = LearningRateController(manager, job.schedule, total)
    step = TrainStep(model, job.loss, manager, CPU, 0)
    watch = LossWatch(CPU)
    verdicts = set()
    for done in range(total):
        rates.apply(done)
        reading = watch.push(done + 1, step(stream.next(), done, 0))
        verdicts.add(reading.verdict if reading else Verdict.OK)
    found = validate(model, job, ValidationBatches(data.validation, job.batch_size), CPU)
    assert found is not None
    assert found.accuracy is not None
    assert found.accuracy > 0.97
    assert verdicts == {Verdict.OK}
