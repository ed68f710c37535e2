"""``run JOB --replay RUN``: a run done again, with its progress and a verdict on its bits."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tolaria_bus.cli.run_place import run_folder
from tolaria_bus.cli.training import check_writable, say, write_summary
from tolaria_bus.settings import SettingError, load

if TYPE_CHECKING:
    from tolaria_bus.tolaria.replay import Replay, ReplaySummary
    from tolaria_bus.tolaria.summary import Progress

_OTHER_BITS: Final = 1
_PROGRESS_SECONDS: Final = 0.2


def repeat(
    job: str,
    source: str,
    assignments: Iterable[str],
    *,
    unwanted: Sequence[str],
    summary: Path | None,
    folder: Path | None,
    **options: Any,
) -> int:
    """Repeat a run and show how that went.

    Args:
        job: As ``run`` takes it.
        source: The run: its folder or its id.
        assignments: ``name=value`` words of ``--set``.
        unwanted: Options that were given and mean nothing here.
        summary: File for the summary as JSON.
        folder: Where to work and leave what comes of it; by default nothing is left.
        options: Settings that have an option of their own; ``None`` where it isn't given.

    Returns:
        The exit code: 1 if the bits are not those recorded, or the run went another way.

    Raises:
        SettingError: An option or a setting is wrong.
        NoSuchRun: There is no such run.
        NothingRecorded: There is no journal.
        JournalCorrupt: It is damaged before its tail.
        ReplayRefused: Something isn't as it was recorded.
        JobError: The job can't be loaded, or its own code failed.
    """
    if unwanted:
        raise SettingError(
            f"{unwanted[0]}: not with --replay, which has no bus and no id to choose"
        )
    settings, given = load(assignments, **options)
    place = run_folder(source, settings)
    if folder is not None and folder.expanduser().resolve() == place:
        raise SettingError(f"--run-dir {folder}: the run to be repeated is there; name another")
    if summary is not None:
        check_writable(summary)
    say(f"loading {job}")
    from tolaria_bus.tolaria.control.recovering import Divergence
    from tolaria_bus.tolaria.engine.job import load_job
    from tolaria_bus.tolaria.recovery.recording import Recording
    from tolaria_bus.tolaria.recovery.run_folder import RunFolder
    from tolaria_bus.tolaria.replay import Replay, recorded_options, recorded_settings

    recording = Recording.read(place)
    settings = recorded_settings(recording, settings)
    loaded = load_job(job, recorded_options(recording, given))
    with (
        _folder(folder) as work,
        closing(RunFolder.open(work, keep=settings.checkpoint_keep)) as opened,
    ):
        try:
            done = _train(Replay(loaded, settings, recording, opened))
        except Divergence as error:
            print(f"tolaria-bus: {error}", file=sys.stderr)
            return _OTHER_BITS
    if summary is not None:
        write_summary(summary, done)
    from tolaria_bus.cli.closing import show_replay

    show_replay(done, kept=folder is not None)
    return _OTHER_BITS if done.same_bits is False else 0


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.expanduser().resolve()
        return
    with tempfile.TemporaryDirectory(prefix="tolaria-replay-") as made:
        yield Path(made)


def _train(replay: Replay) -> ReplaySummary:
    from tolaria_bus.cli.progress import EpochLines, progress_bar

    if not sys.stderr.isatty():
        return _shown(replay, EpochLines(sys.stderr))
    with progress_bar() as show:
        return _shown(replay, show)


def _shown(replay: Replay, show: Callable[[Progress], None]) -> ReplaySummary:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_PROGRESS_SECONDS):
            show(replay.progress)

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        return replay.run()
    finally:
        ended.set()
        watcher.join()
