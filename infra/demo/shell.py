"""The two terminals of the demo: one in which the run trains, one in which commands are typed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

from .screen import Screen

COMMAND_SECONDS = 60
STOP_SECONDS = 30


class DemoFailed(Exception):
    """A step did not do what it says; one line."""


class Background:
    """A command that goes on while others are typed; its lines are kept."""

    def __init__(self, line: str, folder: Path, log: Path) -> None:
        self.line = line
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                shlex.split(line),
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is the demo's, which then ends this in good order.
                start_new_session=True,
            )

    def alive(self) -> None:
        """Raises DemoFailed if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise DemoFailed(f"'{self.line}' has ended with exit code {code}:\n{self.tail()}")

    def wait(self, seconds: float) -> int:
        """Its exit code.

        Raises:
            DemoFailed: It hasn't ended within the time.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"'{self.line}' didn't end within {seconds:g} s") from None

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def end(self) -> None:
        """End it, in good order if it can."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Alerts:
    """``tolaria-bus tail --emergency`` in a third terminal: shown as its lines come."""

    def __init__(self, line: str, folder: Path, screen: Screen) -> None:
        self._screen = screen
        self._seen = threading.Event()
        self.process = subprocess.Popen(
            shlex.split(line),
            cwd=folder,
            env=environment(colour=screen.console.is_terminal),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, seconds: float) -> bool:
        """Wait until a line has come."""
        return self._seen.wait(seconds)

    def end(self) -> None:
        """End it and wait for its last line; a second time nothing happens."""
        self.process.terminate()
        self.process.wait(STOP_SECONDS)
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self._screen.output(line)
                self._seen.set()


class Shell:
    """Runs command lines as they are shown.

    Attributes:
        folder: Where they are typed.
    """

    def __init__(self, folder: Path, screen: Screen) -> None:
        self.folder = folder
        self._screen = screen

    def run(self, line: str, *, expect: int = 0) -> str:
        """Show a line, run it, show and return what it prints.

        Raises:
            DemoFailed: Its exit code is another than expected, or it didn't end.
        """
        self._screen.command(line)
        try:
            done = subprocess.run(
                shlex.split(line),
                cwd=self.folder,
                env=environment(colour=self._screen.console.is_terminal),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"'{line}' didn't end within {COMMAND_SECONDS} s") from None
        self._screen.output(done.stdout)
        if done.returncode != expect:
            raise DemoFailed(f"'{line}' ended with exit code {done.returncode}, not {expect}")
        return done.stdout

    def background(self, line: str, log: Path) -> Background:
        """Show a line and start it behind the others, its output in a file."""
        self._screen.command(f"{line} > {log.relative_to(self.folder)} &")
        return Background(line, self.folder, log)

    def alerts(self, line: str) -> Alerts:
        """Show a line and start it behind the others, its output among theirs."""
        self._screen.command(f"{line} &")
        return Alerts(line, self.folder, self._screen)


def environment(*, colour: bool = False) -> dict[str, str]:
    """The variables of the demo's commands: none of a server or key that is set for other runs."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TOLARIA_")}
    bin_folder = Path(sys.executable).parent
    kept["PATH"] = f"{bin_folder}{os.pathsep}{kept.get('PATH', os.defpath)}"
    if colour:
        kept["FORCE_COLOR"] = "1"
    return kept
