"""A plugin for pytest: records all launches of a run of tests, and pickles them to where REPLAY_RECORDING says."""

import os
import pickle
from pathlib import Path

from replay import Recorder

# Blocks one after another: what atomics return must not depend on which block was first.
recorder = Recorder(threads=1)


def pytest_sessionstart():
    recorder.__enter__()


def pytest_sessionfinish():
    recorder.__exit__()
    Path(os.environ["REPLAY_RECORDING"]).write_bytes(pickle.dumps(recorder.recording()))
