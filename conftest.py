"""A notebook's cell that IPython refuses fails under nbval, whatever is compared; a reader's progress stays as it is;
how many tests run side by side."""

import os
import re

import pytest

os.environ["LUCE_PROGRESS"] = ""  # exercises that tests and notebooks solve are not the reader's


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a cell with an unknown magic, or a magic's bad option.

    IPython prints a UsageError to stderr and sends no error message, and error messages are all that nbval looks for
    (its issue 147): such a cell passes where its output is ignored or was never stored.
    """
    result = yield
    for output in getattr(item, "test_outputs", None) or ():  # which a cell of nbval's has
        refused = output.get("name") == "stderr" and re.search("^UsageError: .*", output.text, re.MULTILINE)
        if refused and not item.options["check_exception"]:
            item.raise_cell_error("IPython refused the cell", refused[0])
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """For `--numprocesses auto`: one process more than there are cores, as some tests only wait; at most four."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)
