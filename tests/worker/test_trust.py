"""A worker refuses to start where its settings don't say whom it believes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker.processes import Terminal
from tolaria_bus.configured import COMPAT_SECRET, compat_secret
from tolaria_bus.settings import SettingError, load


@pytest.mark.parametrize(("wanted", "secret"), [(True, b"s3cret"), (False, None)])
def test_the_secret_of_old_envelopes_is_used_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, secret: bytes | None
) -> None:
    monkeypatch.setenv(COMPAT_SECRET, "s3cret")
    settings, _ = load(compat_envelopes=wanted)
    assert compat_secret(settings) == secret


@pytest.mark.parametrize("secret", [None, ""])
def test_old_envelopes_without_their_secret_are_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    monkeypatch.delenv(COMPAT_SECRET, raising=False)
    if secret is not None:
        monkeypatch.setenv(COMPAT_SECRET, secret)
    settings, _ = load(compat_envelopes=True)
    with pytest.raises(SettingError, match=f"compat_envelopes = True: {COMPAT_SECRET} is not set"):
        compat_secret(settings)


@pytest.mark.slow
def test_a_worker_that_lacks_that_secret_says_so_in_one_line_and_exits_with_two(
    tmp_path: Path,
) -> None:
    terminal = Terminal(tmp_path, {"TOLARIA_COMPAT_ENVELOPES": "1", COMPAT_SECRET: ""})
    output = terminal.run("run", "tiny.py:Tiny", check=2)
    assert output.splitlines()[-1].startswith("tolaria-bus: setting compat_envelopes = True: ")
    assert not (tmp_path / "runs").exists()
