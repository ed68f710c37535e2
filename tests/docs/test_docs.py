"""The documents name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tolaria_bus.settings import describe

ROOT = Path(__file__).parents[2]


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for name, (default, _) in describe().items():
        shown = "" if default is None else f"`{default}`"
        assert f"| `{name}` | {shown} |" in text


@pytest.mark.parametrize("document", ["guarantees.md", "faults.md"])
def test_every_test_that_a_document_names_exists(document: str) -> None:
    file = ""
    for name in re.findall(r"`(tests/\S+|::\w+)`", (ROOT / "docs" / document).read_text()):
        path, _, function = name.partition("::")
        file = path or file
        assert (ROOT / file).is_file(), name
        if function:
            assert f"def {function}(" in (ROOT / file).read_text(), name


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
