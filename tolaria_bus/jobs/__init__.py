"""Ready training jobs, which also show how to write one."""

READY_JOBS = {
    "digits": "tolaria_bus.jobs.digits:Digits",
    "bytes_lm": "tolaria_bus.jobs.bytes_lm:BytesLM",
}
