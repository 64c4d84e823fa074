"""What all tests share: poisoned memory, few threads, and which tests are skipped here, and why."""

import os

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
# PyTorch then fills torch.empty with NaN (integers: their maximum), so a forgotten write fails a test.
torch.use_deterministic_algorithms(True, warn_only=True)


def pytest_collection_modifyitems(items):
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA GPU here"
    if os.environ.get("LUCE_FULL") != "1":
        reasons["full"] = "full-size or long; set LUCE_FULL=1"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))
