"""One server for all tests here, started as a reader's shell would: some environments turn Python's buffers off."""

import os

import pytest

from luce_edu.inline import apart


@pytest.fixture(scope="session", autouse=True)
def server():
    kept = os.environ.pop("PYTHONUNBUFFERED", None)
    apart.warm_up()
    if kept is not None:
        os.environ["PYTHONUNBUFFERED"] = kept
    yield
    if apart._server is not None:
        apart._server.stop()
