"""The ready jobs give the losses of single samples, and their mean is the loss."""

import pytest
import torch

from tolaria_bus.tolaria.engine import BatchStream, build_data, build_model, load_job


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("digits", {"batch_size": "8", "dropout": "0"}, (8,)),
        ("bytes_lm", {"parameters": "50k", "context": "16", "batch_size": "4"}, (4, 16)),
    ],
)
def test_their_mean_is_the_loss(name, options, shape):
    job = load_job(name, options)
    assert job.sample_losses is not None
    batch = BatchStream(build_data(job, 0).train, job.batch_size, 0).next()
    model = build_model(job, 0).eval()
    with torch.no_grad():
        losses = job.sample_losses(model, batch)
        torch.testing.assert_close(losses.mean(), job.loss(model, batch))
    assert losses.shape == shape
