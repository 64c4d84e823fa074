"""Fixtures of tests in a browser: headless Chromium, and a folder for screenshots."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("no Chromium found; install it: sudo apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, which containers use, Chromium runs only without its sandbox. All pages are our own, on loopback.
        sandbox = os.geteuid() != 0
        browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def artefacts() -> Path:
    folder = Path(__file__).resolve().parents[2] / "build" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
