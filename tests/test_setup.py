"""The files that install the package agree with each other; commands name in one line what is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = (ROOT / "environment.yml").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = PROJECT["optional-dependencies"]


def conda_differences(environment: str) -> set[str]:
    """Requirements that are in only one of environment.yml and pyproject.toml (with cu13 and dev)."""
    conda = yaml.safe_load(environment)["dependencies"]
    listed = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    in_conda = {line for line in listed if not line.startswith("-")}
    return in_conda ^ {*PROJECT["dependencies"], *EXTRAS["cu13"], *EXTRAS["dev"]}


def constraint_faults(constraints: str) -> list[str]:
    """Requirements whose constraint is missing or outside pyproject's bounds."""
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    faults = []
    for text in (*PROJECT["dependencies"], *EXTRAS["cu13"], *EXTRAS["dev"]):
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(pin):
            faults.append(f"{text}: pinned to {pin}")
    return faults


def test_environment_yml_lists_what_pyproject_lists():
    assert conda_differences(ENVIRONMENT) == set()


@pytest.mark.parametrize("fault", [("torch>=2.11", "torch>=2.10"), ("      - rich>=13.7\n", "")])
def test_a_difference_between_environment_yml_and_pyproject_is_seen(fault):
    assert conda_differences(ENVIRONMENT.replace(*fault))


def test_constraints_pin_every_requirement_within_its_bounds():
    assert constraint_faults(CONSTRAINTS) == []
    assert "\ntorch==2.13.0\n" in CONSTRAINTS


@pytest.mark.parametrize("fault", [("torch==2.13.0", "torch==2.10.0"), ("\nrich==", "\npoor==")])
def test_a_constraint_that_is_missing_or_out_of_bounds_is_seen(fault):
    assert constraint_faults(CONSTRAINTS.replace(*fault))


def test_constraints_name_no_local_build_and_no_path():
    assert re.findall(r"==[^\n]*\+|file:|@", CONSTRAINTS) == []


def test_constraints_for_cu12_keep_torch_and_drop_cuda_13():
    kept = re.search(r"sed '(.*)'", MAKEFILE)[1].replace("$$", "$")
    cu12 = subprocess.run(["sed", kept], input=CONSTRAINTS, capture_output=True, text=True, check=True).stdout
    assert "torch==2.13.0" in cu12 and "cuda-core==" in cu12
    assert "cuda-bindings" not in cu12 and "nvidia-cuda" not in cu12


def test_a_wheel_carries_kernels_and_records_where_the_package_looks_for_them():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {"csrc": "luce_edu/csrc", "figures/records": "luce_edu/records"}
    assert wheel["only-include"] == ["luce_edu", *wheel["sources"]]
    for folder in wheel["only-include"]:
        assert (ROOT / folder).is_dir()


CI = ROOT / ".ci" / "run"


def ci(tmp_path: Path, *, fails: str = "", chromium: bool) -> tuple[int, list[str]]:
    """Run .ci/run with a `make` that only records its target; return the status and the targets."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    log.touch()
    scripts = {"make": f'echo "$1" >> "{log}"; [ "$1" != "{fails}" ]'} | ({"chromium": ""} if chromium else {})
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    for name in ("bash", "dirname", "id", "env"):  # no other tool, so no apt-get
        (tools / name).symlink_to(shutil.which(name))
    done = subprocess.run([str(CI)], env={"PATH": str(tools)}, capture_output=True)
    return done.returncode, log.read_text().split()


def test_ci_runs_the_test_command_and_the_browsers_where_there_is_one(tmp_path):
    assert os.access(CI, os.X_OK)
    for i, (options, expected) in enumerate([
        ({"chromium": True}, (0, ["test", "browser-test"])),
        ({"chromium": False}, (0, ["test"])),
        ({"chromium": True, "fails": "browser-test"}, (2, ["test", "browser-test"])),
        ({"chromium": True, "fails": "test"}, (2, ["test"])),
    ]):  # fmt: skip
        (tmp_path / str(i)).mkdir()
        status, targets = ci(tmp_path / str(i), **options)
        assert (bool(status), targets) == (bool(expected[0]), expected[1])


MISSING = {  # the script of a stand-in for Python, or None; variables of make; of the environment; pattern of stderr
    "the module venv": ('case "$2" in *ensurepip*) exit 1;; esac', [], {}, "sudo apt install python3-venv"),
    "a compiler": (None, [], {"PATH": "{folder}/bin", "CXX": ""}, "sudo apt install g[+][+]"),
    "a newer Python": ("exit 1", [], {}, "not Python 3.11 or newer.*PYTHON=python3.12"),
    "a known CUDA": (None, ["CUDA=cu11"], {}, "CUDA=cu13 or CUDA=cu12, got 'cu11'"),
}


@pytest.mark.parametrize("body, variables, environment, said", MISSING.values(), ids=MISSING)
def test_make_install_names_what_is_missing_and_makes_nothing(body, variables, environment, said, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(shutil.which("sh"))
    python, venv = tmp_path / "python", tmp_path / "venv"
    if body:
        python.write_text(f"#!/bin/sh\n{body}\n")
        python.chmod(0o755)
    command = [shutil.which("make"), "-C", str(ROOT), "install", f"VENV={venv}", *variables]
    command.append(f"PYTHON={python if body else sys.executable}")
    environment = {name: value.format(folder=tmp_path) for name, value in environment.items()}
    outcome = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert outcome.returncode != 0 and re.search(said, outcome.stderr, re.DOTALL) and not venv.exists()


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def test_import_luce_edu_imports_nothing_heavy():
    heavy = python("import sys, luce_edu; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])")
    assert heavy == "[]"


def test_luce_edu_lists_its_names_and_refuses_others():
    import luce_edu

    assert {"load_model", "decoder", "STAGES", "verify", "__version__"} <= set(dir(luce_edu))
    with pytest.raises(AttributeError, match="no attribute 'lode_model'"):
        luce_edu.lode_model  # noqa: B018 (the access is the test)
