"""Debian's Chromium for the tests that look at pages."""

import contextlib
import importlib.util
import shutil
import tempfile

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")


@contextlib.contextmanager
def open_browser(width=1280, height=800):
    """A headless browser's context (Playwright's, to open pages in) and the list that errors of its pages go to; skips where there is no browser."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found or not importlib.util.find_spec("playwright"):
        pytest.skip("needs Chromium and playwright: apt-get install chromium, pip install -e '.[browser]'")
    from playwright.sync_api import sync_playwright

    errors = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as home:
        size = {"width": width, "height": height}
        context = playwright.chromium.launch_persistent_context(home, executable_path=found, headless=True, args=list(FLAGS), viewport=size)
        context.on("page", lambda page: _listen(page, errors))
        for page in context.pages:
            _listen(page, errors)
        try:
            yield context, errors
        finally:
            context.close()


def _listen(page, errors):
    page.on("console", lambda message: errors.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(f"script: {error}"))
    page.on("requestfailed", lambda request: errors.append(f"request: {request.url[:100]} {request.failure}"))
