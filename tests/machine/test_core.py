"""The core's library is built once, reused, and rebuilt where it is damaged; a compiler that fails is named."""

import sys
import time
from pathlib import Path

import pytest
from starting import in_two_processes

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


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The names of the files that are compiled from here on."""
    names, compile_ = [], core._compile

    def counted(compiler, arguments):
        names.extend(Path(argument).name for argument in arguments if argument.endswith(".cpp"))
        compile_(compiler, arguments)

    monkeypatch.setattr(core, "_compile", counted)
    return names


def kept(tree: Path, suffix: str) -> list[Path]:
    """The files of this suffix in the cache, which has only objects and libraries."""
    entries = list((tree / "cache" / "machine").rglob("*"))
    assert all(path.suffix in (".o", ".so") for path in entries), entries
    return [path for path in entries if path.suffix == suffix]


def test_an_edited_source_alone_is_compiled_and_the_first_form_is_still_there(tree, compiled):
    first = core.build()
    assert sorted(compiled) == ["one.cpp", "two.cpp"]
    source = tree / "csrc" / "machine" / "one.cpp"
    source.write_text(SMALL["one.cpp"].replace("1", "11"))
    assert core.build() != first
    assert compiled[2:] == ["one.cpp"]
    source.write_text(SMALL["one.cpp"])
    assert core.build() == first and len(compiled) == 3
    assert len(kept(tree, ".so")) == 2


def test_an_edited_header_is_compiled_into_every_source(tree, compiled):
    first = core.build()
    (tree / "csrc" / "machine" / "two.h").write_text("#define TWO 3\n")
    assert core.build() != first and len(compiled) == 4


def test_another_compiler_has_a_library_of_its_own(tree, monkeypatch):
    first = core.build()
    monkeypatch.setenv("CXX", f"{core.find_compiler()[0]} -g")
    assert core.build() != first


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_what_is_damaged_is_made_again(tree, compiled, damage):
    library = core.build()
    content, objects = library.read_bytes(), kept(tree, ".o")
    for path in (library, objects[0]):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        path.write_bytes({"truncated": whole[: len(whole) // 2], "flipped": bytes(flipped), "empty": b""}[damage])
    assert core.build() == library
    assert library.read_bytes() == content and len(compiled) == 3


def test_two_processes_build_at_once_and_a_third_finds_it(tree):
    in_two_processes(core.build)
    assert len(kept(tree, ".so")) == 1
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


def test_without_a_terminal_nothing_is_shown(tree, capsys):
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
    assert not kept(tree, ".so")


def test_a_compiler_that_writes_nothing_is_named(tree, monkeypatch):
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(CompileError, match="wrote no library"):
        core.build()
    assert not kept(tree, ".so") and not kept(tree, ".o")
