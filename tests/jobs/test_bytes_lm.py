import pytest
import torch

from tolaria_bus.jobs.bytes_lm import BytesLM, parameter_count
from tolaria_bus.kasmina import Garden
from tolaria_bus.tolaria.engine import (
    BatchStream,
    JobError,
    OptimizerManager,
    TrainStep,
    build_model,
    load_job,
    view,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", ["50k", "200k", "1M", "5M", "25M", "100000"])
def test_a_size_is_met_within_a_fifth(size):
    job = BytesLM(parameters=size)
    target = float(size.lower().replace("k", "e3").replace("m", "e6"))
    count = parameter_count(job.width, job.depth, job.context)
    assert 0.8 < count / target < 1.2
    with torch.device("meta"):
        model = job.model()
    assert sum(p.numel() for p in model.parameters()) == count


def test_an_explicit_shape_wins():
    job = load_job("bytes_lm", {"width": "64", "depth": "3", "context": "32"})
    model = build_model(job, 0)
    assert [(s.features, s.kind) for s in Garden(model).slots()] == [(64, "sequence")] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parameters": "huge"}, "parameters is 'huge'"),
        ({"parameters": "1"}, "from 20k to 1000M"),
        ({"width": "50"}, "a multiple of 32"),
        ({"depth": "0"}, "depth is 0"),
        ({"context": "0"}, "context is 0"),
        ({"context": "5000"}, "context is 5000"),
        ({"dropout": "-0.1"}, "dropout is -0.1"),
        ({"schedule": "wavy"}, "schedule.kind is 'wavy'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, words):
    with pytest.raises(JobError, match=words) as error:
        load_job("bytes_lm", options)
    assert "\n" not in str(error.value)


def test_windows_go_through_the_text_and_the_last_tenth_is_held_out():
    job = BytesLM(context=64)
    (train,), (held_out,) = job.train_data().tensors, job.validation_data().tensors
    assert train.dtype == torch.uint8
    assert train.shape[1] == held_out.shape[1] == 65
    assert torch.equal(train[0, 64:], train[1, :1])
    total = (len(train) + len(held_out)) * 64
    assert 0.09 < len(held_out) * 64 / total < 0.11
    assert train.untyped_storage().nbytes() < 2**20


def test_no_place_sees_what_comes_after_it():
    job = load_job("bytes_lm", {"width": "32", "depth": "2", "context": "16"})
    model = build_model(job, 0).eval()
    text = torch.arange(16).reshape(1, 16)
    changed = text.clone()
    changed[0, 10:] = 99
    with torch.no_grad():
        before, after = model(text), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10], after[:, 10])


def test_it_learns_from_the_text():
    job = view(BytesLM(width=32, depth=1, context=32, lr=3e-3))
    model = build_model(job, 0)
    stream = BatchStream(job.train_data(), job.batch_size, 0)
    step = TrainStep(model, job.loss, OptimizerManager(job.optimizer, model), CPU, 0)
    losses = [step(stream.next(), position, 0).item() for position in range(60)]
    assert 5.3 < losses[0] < 5.8  # ln 256 = 5.55: it knows nothing yet.
    assert sum(losses[-5:]) / 5 < 3.5
    assert job.accuracy is not None
    assert 0.1 < float(job.accuracy(model, stream.next())) < 0.9
