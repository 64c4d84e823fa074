"""The core's library is built once, found again, and built anew where it is damaged; a compiler that fails is named."""

import multiprocessing
import sys
import time
from pathlib import Path

import pytest

from luce_edu.errors import CompileError
from luce_edu.machine import core

SMALL = {
    "one.cpp": 'extern "C" __attribute__((visibility("default"))) int one() { return 1; }\n',
    "two.cpp": '#include "two.h"\nextern "C" int two() { return TWO; }\n',
    "two.h": "#define TWO 2\n",
}


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A csrc/ whose machine/ is small, and a cache of its own."""
    folder = tmp_path / "csrc" / "machine"
    folder.mkdir(parents=True)
    for name, text in SMALL.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(core, "csrc_dir", lambda: tmp_path / "csrc")
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def kept(tree: Path, suffix: str = ".so") -> list[str]:
    """Whole entries of the cache, and nothing of a build that failed."""
    files = [path for path in (tree / "cache" / "machine").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".so", ".o"}
    return [path.name for path in files if path.suffix == suffix]


def test_an_edited_source_is_built_again_and_the_first_form_is_still_there(tree):
    first = core.build()
    header = tree / "csrc" / "machine" / "two.h"
    header.write_text("#define TWO 3\n")
    assert core.build() != first
    header.write_text(SMALL["two.h"])
    assert core.build() == first
    assert len(kept(tree)) == 2


def test_a_change_of_one_source_compiles_that_one(tree):
    core.build()
    assert len(kept(tree, ".o")) == 2
    source = tree / "csrc" / "machine" / "one.cpp"
    source.write_text(source.read_text() + "\n// changed\n")
    core.build()
    assert len(kept(tree, ".o")) == 3 and len(kept(tree)) == 2


def test_another_compiler_has_a_library_of_its_own(tree, monkeypatch):
    first = core.build()
    monkeypatch.setenv("CXX", f"{core.find_compiler()[0]} -g")
    assert core.build() != first


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_library_is_built_again(tree, damage):
    library = core.build()
    content = library.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    library.write_bytes({"truncated": content[: len(content) // 2], "flipped": bytes(flipped), "empty": b""}[damage])
    assert core.build() == library
    assert library.read_bytes() == content


def test_two_processes_build_at_once_and_a_third_finds_it(tree):
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=core.build) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    assert len(kept(tree)) == 1
    started = time.monotonic()
    core.build()
    assert time.monotonic() - started < 0.3


def test_the_core_that_is_there_is_found_in_under_300_ms():
    core.build()
    started = time.monotonic()
    core.build()
    assert time.monotonic() - started < 0.3


def test_a_terminal_is_shown_how_far_it_is(tree, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    core.build()
    assert "1 of 2 files" in capsys.readouterr().err


def test_elsewhere_nothing_is_shown(tree, capsys):
    core.build()
    assert capsys.readouterr().err == ""


def test_a_missing_compiler_is_one_clear_line(tree, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompileError, match="build-essential") as error:
        core.build()
    assert "\n" not in str(error.value)


def test_a_compiler_named_by_cxx_that_is_not_there_is_refused(tree, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match="CXX is 'no-such-compiler'"):
        core.build()


def test_a_compiler_that_refuses_shows_its_log_with_paths_inside_csrc(tree):
    (tree / "csrc" / "machine" / "one.cpp").write_text("int one() { return mistake; }\n")
    with pytest.raises(CompileError) as error:
        core.build()
    assert "machine/one.cpp:1" in error.value.log and "mistake" in error.value.log
    assert str(tree) not in error.value.log
    assert kept(tree) == []


def test_a_compiler_that_writes_nothing_is_named(tree, monkeypatch):
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(CompileError, match="wrote no library"):
        core.build()
    assert kept(tree) == []
