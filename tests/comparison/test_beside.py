"""The stored PTX is Triton's output for our Triton kernels, computes the right results, and is compared with ours."""

import re
import sys
from dataclasses import replace

import pytest

from luce_edu.comparison import stored as storage
from luce_edu.comparison.beside import CARDS, beside, check, code_lines, on_gpus, ours, timed, tritons
from luce_edu.comparison.stored import ARCHITECTURES, KERNELS, compile_triton, source_digest, stored
from luce_edu.config import ModelConfig
from luce_edu.errors import CompileError, KernelError
from luce_edu.machine import load
from luce_edu.machine.cards import find_card
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.records.record import Record
from luce_edu.measure.records.rows import Machine, Recorded, TaskRow, Tasks
from luce_edu.models import RANDOM_CONFIG
from luce_edu.stages.dims import kernel_defines


@pytest.fixture(scope="module")
def table():
    return beside()


def test_all_four_are_right_and_no_figure_is_below_the_least(table):
    assert list(table.figures) == list(KERNELS)
    for name, pair in table.figures.items():
        read, written = table.least[name]
        for figures in pair:
            assert figures.bytes_read >= read and figures.bytes_written >= written
            assert set(figures.us) == set(figures.registers) == set(CARDS)
            assert all(us > 0 for us in figures.us.values()) and all(0 < n < 256 for n in figures.registers.values())
            assert figures.lines_with_calls >= figures.lines > 3
    assert table.least == {"rms_norm": (8192, 4096), "matvec": (2 * 3584 * 1024 + 4096, 4 * 3584)}


def test_the_table_has_a_cell_for_every_figure(table):
    assert len(table.header) == 1 + 3 * len(KERNELS) and {len(row) for row in table.body} == {len(table.header)}
    assert table.caption and "<table>" in table._repr_html_()


def test_a_record_of_a_gpu_stands_in_the_caption_with_what_ran_there():
    quartiles = Quartiles(3.25, 3.0, 3.5, 15)
    rows = (TaskRow("matvec", "cuBLAS", quartiles), TaskRow("matvec", "torch.compile", None, "no compiler"))
    machine = Machine("NVIDIA H200", "sm_90", 132, 2**37, 50 * 2**20, "580", 700.0, {})
    content = Recorded("2026-11-29", "0" * 40, "random-0.8b", machine, {"tasks": Tasks(rows)}, [])
    said = on_gpus([Record("h200", content)])
    assert "matvec by cuBLAS 3.25 µs" in said and "NVIDIA H200" in said and "torch.compile" not in said
    assert "not recorded" in on_gpus([])


# A branch around loads, up to its label.
BRANCH = re.compile(r"@(%p\d+) bra\s+(\$L\w+);((?:(?!bra)[^@])*?ld\.global(?:(?!bra)[^@])*?)\n\2:")


def test_our_norm_is_as_fast_once_its_branches_are_predicates(table):
    """NVIDIA's assembler does the same. The clock keeps the branches of the PTX, where loads wait for each other."""
    card = CARDS[0]
    defines = kernel_defines(ModelConfig.from_file(RANDOM_CONFIG))
    text = compile_ptx("per_op.cu", None, ["rms_norm"], defines, find_card(card).arch)
    begin = text.index(".entry rms_norm(")
    end = text.index(".entry", begin + 1)

    def predicated(found: re.Match) -> str:
        return re.sub(r"^(\s*)(ld\.|add\.)", rf"\1@!{found[1]} \2", found[3], flags=re.MULTILINE)

    body, count = BRANCH.subn(predicated, text[begin:end])
    kernel = load(text[:begin] + body + text[end:], card=card)["rms_norm"]
    side = replace(ours("rms_norm", card), kernel=kernel)
    check(side)
    found = timed(side)
    with_branches, of_triton = (figures.us[card] for figures in table.figures["rms_norm"])
    assert count == 4 and with_branches > 1.25 * of_triton
    assert found.total_us - found.launch_us < 1.15 * of_triton


def test_the_stored_ptx_is_of_the_kernels_as_they_stand():
    assert set(stored()) == {(kernel, arch) for kernel in KERNELS for arch in ARCHITECTURES}
    assert {made.source for made in stored().values()} == {source_digest()}, "python -m luce_edu.comparison.stored"


@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_makes_the_same_again(kernel):
    pytest.importorskip("triton")
    made, before = compile_triton(kernel, ARCHITECTURES[0]), stored()[kernel, ARCHITECTURES[0]]
    check(tritons(kernel, CARDS[0], made))  # another version of Triton may differ, and must be right
    assert made == before or made.triton != before.triton


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(CompileError, match="pip install"):
        compile_triton("matvec", "sm_86")


def test_stored_ptx_is_read_back_as_written(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "compile_triton", lambda kernel, arch: stored()[kernel, arch])
    before = dict(stored())
    storage.write(tmp_path)
    monkeypatch.setattr(storage, "FOLDER", tmp_path)
    assert storage.stored.__wrapped__() == before


def test_comments_and_blank_lines_do_not_count():
    assert code_lines("csrc/matvec.cuh", "group_size") == 4
    assert code_lines("luce_edu/comparison/triton_kernels.py", "rms_norm") == 8


# {fault: (kernel, text in Triton's PTX, the text in its place, each time it occurs)}
FAULTS = {
    "weight in place of 1 + weight": ("rms_norm", "0f3F800000", "0f00000000"),
    "the mean of half as many": ("rms_norm", "0f44800000", "0f44000000"),
    "no barrier": ("rms_norm", "bar.sync", "// bar.sync"),
    "nothing stored": ("rms_norm", "mov.pred \t%p1, -1", "mov.pred \t%p1, 0"),
    "half of the lanes left out": ("matvec", ", 16, 31, -1", ", 8, 31, -1"),
    "a row too many": ("matvec", "setp.lt.s32", "setp.le.s32"),
    "no barrier in the product": ("matvec", "bar.sync", "// bar.sync"),
}


@pytest.mark.planted
@pytest.mark.parametrize("kernel, old, new", FAULTS.values(), ids=FAULTS)
def test_a_changed_instruction_is_refused(kernel, old, new):
    made = stored()[kernel, ARCHITECTURES[0]]
    assert old in made.ptx
    with pytest.raises(KernelError):
        check(tritons(kernel, CARDS[0], replace(made, ptx=made.ptx.replace(old, new))))
