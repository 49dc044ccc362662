"""A headless Chromium for tests of pages: the one of the system, or one that TARGETSMITH_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOW = "none of chromium, chromium-browser, google-chrome on PATH: apt-get install chromium, or name one by TARGETSMITH_CHROMIUM"


def chromium() -> str:
    """Its path; the test is skipped where there is none."""
    named = os.environ.get("TARGETSMITH_CHROMIUM")
    found = named if named and Path(named).exists() else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(HOW)
    return found


@contextmanager
def opened_browser() -> Iterator[Any]:
    """A running browser of playwright's API; without its sandbox, which needs rights that a test's machine may not give."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
