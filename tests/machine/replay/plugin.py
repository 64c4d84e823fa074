"""A plugin for pytest: records all launches of a run of tests, and pickles them into the file REPLAY_RECORDING."""

import os
import pickle
from pathlib import Path

from replay import Recorder

# Blocks run one after another, so that results of atomics do not depend on which block was first.
recorder = Recorder(threads=1)


def pytest_sessionstart():
    recorder.__enter__()


def pytest_sessionfinish():
    recorder.__exit__()
    Path(os.environ["REPLAY_RECORDING"]).write_bytes(pickle.dumps(recorder.recording()))
