import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tolaria_bus.tolaria.engine import JobError, build_data, build_model, load_job, view

from .jobs_for_tests import Line

JOBS = "tests.engine.jobs_for_tests"

FILE = """
import helper_of_the_job
class Job:
    def __init__(self, width: int = 3):
        self.width = width
    batch_size = 8
    def model(self):
        import torch
        return torch.nn.Linear(self.width, 1)
    def train_data(self):
        return [1] * 100
    def validation_data(self):
        return 1 / 0
    def loss(self, model, batch):
        return model(batch)
job = Job
"""


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "helper_of_the_job.py").write_text("x = 1\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def source(spec: str, **options: str) -> Any:
    return load_job(spec, options).source


def refused(spec: str, **options: str) -> str:
    with pytest.raises(JobError) as error:
        load_job(spec, options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_object_a_class_and_a_function_are_found_by_module_and_attribute():
    assert load_job(f"{JOBS}:job").source is load_job(JOBS).source
    assert source(f"{JOBS}:Line").width == 4
    assert source(f"{JOBS}:factory", width="9").width == 9


def test_defaults_are_filled_in():
    job = load_job(f"{JOBS}:Line")
    assert (job.name, job.batch_size, job.epochs) == ("jobs_for_tests", 64, 10)
    assert job.schedule.kind == "constant"
    assert job.accuracy is None
    assert job.optimizer is None


def test_ready_jobs_are_found_by_name():
    assert source("digits", width="4").width == 4
    assert load_job("bytes_lm").name == "bytes_lm"
    assert "bytes_lm, digits" in refused("nosuch")


def test_a_file_is_loaded_once_and_can_import_its_neighbours(job_file):
    job = load_job(str(job_file), {"width": "5"})
    assert (job.name, job.batch_size) == ("mine", 8)
    assert source(str(job_file), width="5").width == 5
    assert type(load_job(f"{job_file}:Job").source) is type(job.source)


def test_options_have_the_types_of_the_parameters():
    options = {"width": "8", "lr": "1e-2", "shift": "true", "kind": "7", "size": "5"}
    job = source(f"{JOBS}:Line", **options)
    assert (job.width, job.lr, job.shift, job.kind, job.size) == (8, 0.01, True, "7", 5)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (f"{JOBS}:Line", {"widht": "1"}, "no option 'widht'; it takes: width, lr, shift, kind"),
        (f"{JOBS}:Line", {"width": "1.5"}, "width is '1.5'; it must be a whole number"),
        (f"{JOBS}:Line", {"lr": "fast"}, "lr is 'fast'; it must be a number"),
        (f"{JOBS}:Line", {"shift": "maybe"}, "must be true or false"),
        (f"{JOBS}:job", {"width": "1"}, "takes no options"),
        (f"{JOBS}:Picky", {}, "needs the option 'depth'"),
        (f"{JOBS}:Picky", {"depth": "2"}, "ValueError: depth 2 is not to my taste"),
        (f"{JOBS}:nothing", {}, "lacks model(), train_data(), validation_data(), loss()"),
        (f"{JOBS}:gone", {}, "has no attribute 'gone'"),
        ("no_such_module.at_all:job", {}, "no module 'no_such_module.at_all'"),
        ("no/such/file.py", {}, "no job file no/such/file.py"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec, options, words):
    assert words in refused(spec, **options)


def test_an_error_at_import_names_the_users_file_and_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\nimport no_such_thing_at_all\n")
    assert f"{path}:2" in refused(str(path))
    path.write_text("def f(:\n")
    assert f"{path}:1: SyntaxError" in refused(f"{path}:f")


def test_an_error_in_the_jobs_code_names_its_file_and_line_and_keeps_its_cause(job_file):
    with pytest.raises(JobError, match=rf"validation_data.*{job_file}:13: ZeroDivision") as error:
        build_data(load_job(str(job_file)), 0)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("epochs", 1.5),
        ("optimizer", "adamant"),
        ("optimizer", 4),
        ("optimizer", {"lr": 0.1}),
        ("optimizer", {"name": "SGD", "momentum": 2}),
        ("schedule", "wavy"),
        ("schedule", {"kind": "cosine", "warmup": 3}),
        ("name", 4),
        ("loss", None),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_refused(name, value):
    job = Line()
    setattr(job, name, value)
    with pytest.raises(JobError, match=name):
        view(job)


def test_the_same_seed_gives_the_same_model_and_data_and_no_global_draw_is_seen():
    job = view(Line())
    torch.default_generator.manual_seed(1)
    random.seed(1)
    expected = (float(torch.rand(())), random.random())
    torch.default_generator.manual_seed(1)
    random.seed(1)
    models: list[Any] = [build_model(job, seed) for seed in (5, 5, 6)]
    first, second, other = models
    data, again = build_data(job, 5), build_data(job, 5)
    assert (float(torch.rand(())), random.random()) == expected
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert torch.equal(data.train.tensors[0], again.train.tensors[0])
    assert not torch.equal(data.train.tensors[0][:10], data.validation.tensors[0])


def test_a_model_that_is_none_is_refused():
    job = Line()
    setattr(job, "model", lambda: "model")  # noqa: B010
    with pytest.raises(JobError, match="returned a str"):
        build_model(view(job), 0)


def test_losses_of_samples_are_a_function_of_their_own_or_the_loss_unreduced():
    class Reduces(Line):
        def loss(self, model, batch, reduction="mean"):
            return reduction

    class Own(Reduces):
        def sample_losses(self, model, batch):
            return "own"

    class Wrong(Line):
        sample_losses = 3

    assert view(Line()).sample_losses is None
    for job, expected in ((Reduces(), "none"), (Own(), "own")):
        losses: Any = view(job).sample_losses
        assert losses(None, None) == expected
    with pytest.raises(JobError, match="sample_losses is 3; it must be a function"):
        view(Wrong())
