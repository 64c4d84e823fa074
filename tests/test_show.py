"""A notebook shows the text that is in the file; a region that does not exist is an error."""

import ast
import html
import json
import re
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from luce_edu.inline.trial import Attempt, Verdict
from luce_edu.reference.rms_norm import rms_norm
from luce_edu.show import MOST_INSTRUCTIONS, find_ptx, find_source, show_ptx, show_source

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))

REGIONS = [
    ("csrc/grid_barrier.cuh", "grid_barrier", "__device__", "}"),
    ("csrc/grid_barrier.cuh", "GridBarrier", "struct GridBarrier {", "};"),
    ("csrc/primitives.cuh", "bf16x8", "// Eight bf16", "};"),  # with the comment above, and alignas(16)
    ("csrc/per_layer.cu", "delta_rule", "KERNEL delta_rule", "}"),  # behind a macro
    ("csrc/megakernel.cu", "megakernel", 'extern "C"', "}"),  # begins on the line above its name
    ("csrc/matvec.cuh", "loads_in_flight", "constexpr int", "waits"),
    ("csrc/weight_stream.cuh", "WeightStream.take", "// w[i]", "}"),  # a member of a struct
    ("csrc/delta_rule.cuh", None, "// delta_rule.cuh", "2412.06464"),
    ("luce_edu/stages/per_op.py", "PerOpDecoder._matvec", "def _matvec", "smem=smem)"),
    ("luce_edu/stages/base.py", "Decoder.position", "@property", "return self.state.position"),
    ("luce_edu/verification.py", "LIMIT", "LIMIT = ", "error of bf16"),
    ("luce_edu/show.py", None, '"""Show', '"""'),
]


@pytest.mark.parametrize(("path", "name", "begins", "ends"), REGIONS)
def test_a_region_is_found_whole_with_its_true_line_numbers(path, name, begins, ends):
    source = find_source(path, name)
    assert source.text.startswith(begins) and source.text.endswith(ends)
    lines = (ROOT / path).read_text().split("\n")[source.first_line - 1 :]
    for shown, line in zip(source.text.split("\n"), lines, strict=False):
        assert line.strip() == shown.strip()
    assert source.text.count("{") == source.text.count("}")


MARKED = """\
// marks.cuh: pieces of a function
void before() {}
// <all>
void f() {
    // <load>
    // a comment that belongs to the piece
    if (true) {
        load();
    }

    load();
    // </load>
}
// </all>
// <loads>
loads();
// </loads>
"""


@pytest.fixture
def csrc(tmp_path, monkeypatch):
    """csrc(text) writes the text into csrc/marks.cuh."""
    monkeypatch.setattr("luce_edu.show.csrc_dir", lambda: tmp_path)
    return (tmp_path / "marks.cuh").write_text


def test_a_marked_region_is_shown_without_marks_and_indent_at_its_true_lines(csrc):
    csrc(MARKED)
    source = find_source("csrc/marks.cuh", "<load>")
    wanted = "// a comment that belongs to the piece\nif (true) {\n    load();\n}\n\nload();"
    assert (source.heading, source.text) == ("csrc/marks.cuh, lines 6 to 11", wanted)
    assert repr(source).split("\n")[3] == "   8      load();"
    assert find_source("csrc/marks.cuh", "<loads>").heading == "csrc/marks.cuh, line 16"
    assert find_source("csrc/marks.cuh", "<all>").heading == "csrc/marks.cuh, lines 4 to 13"


def test_a_comment_above_the_mark_does_not_belong_to_a_marked_region(csrc):
    csrc("// above\n// <x>\nline;\n// </x>\n// below\n")
    assert find_source("csrc/marks.cuh", "<x>").text == "line;"


BAD_MARKS = {
    "no mark": "line;\n",
    "no end": "// <x>\nline;\n",
    "no begin": "line;\n// </x>\n",
    "end before begin": "// </x>\nline;\n// <x>\n",
    "end of another": "// <x>\nline;\n// </y>\n",
    "nothing between": "// <x>\n// </x>\n",
    "twice": "// <x>\nline;\n// </x>\n// <x>\nline;\n// </x>\n",
    "begun twice": "// <x>\n// <x>\nline;\n// </x>\n",
    "ended twice": "// <x>\nline;\n// </x>\n// </x>\n",
    "beside code": "line; // <x>\nline;\n// </x>\n",
    "a longer name": "// <xy>\nline;\n// </xy>\n",
    "with words": "// <x> begins\nline;\n// </x>\n",
}


@pytest.mark.planted
@pytest.mark.parametrize("what", BAD_MARKS)
def test_marks_that_do_not_make_one_region_are_an_error(csrc, what):
    csrc(BAD_MARKS[what])
    with pytest.raises(ValueError, match=r"csrc/marks.cuh: .*<x>.*[023]"):
        find_source("csrc/marks.cuh", "<x>")


def test_every_mark_in_csrc_makes_one_region():
    marks = [
        (path.relative_to(ROOT).as_posix(), line.split()[1])
        for path in (ROOT / "csrc").rglob("*.cu*")
        for line in path.read_text().splitlines()
        if line.strip().startswith("// <") and line.strip().endswith(">")
    ]
    assert marks
    for path, mark in marks:
        assert find_source(path, mark.replace("</", "<")).text


def test_a_line_with_less_indent_than_the_first_is_shown_whole(csrc):
    csrc("    // <loop>\n    int n;\n#pragma unroll\n    for (;;);\n    // </loop>\n")
    assert find_source("csrc/marks.cuh", "<loop>").text == "int n;\n#pragma unroll\nfor (;;);"


def test_an_object_shows_the_same_as_its_path():
    assert find_source(rms_norm) == find_source("luce_edu/reference/rms_norm.py", "rms_norm")
    assert rms_norm.__doc__.split("\n")[0] in repr(find_source(rms_norm))


def test_html_and_text_hold_the_same_characters():
    source = find_source("csrc/megakernel.cu", "megakernel")
    shown = html.unescape(re.sub(r"<[^>]*>", "", source._repr_html_().partition("<pre")[2].partition(">")[2]))
    assert [line.rstrip() for line in shown.split("\n")] == repr(source).split("\n")[1:]


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("csrc/grid_barrier.cuh", "gone", "csrc/grid_barrier.cuh.*gone"),
        ("csrc/grid_barrier.cuh", "GridBarrier.gone", "csrc/grid_barrier.cuh.*gone"),
        ("csrc/grid_barrier.cuh", "Gone.word", "csrc/grid_barrier.cuh.*Gone.word"),
        ("csrc/grid_barrier.cuh", "add_release", "add_release"),  # called there, not defined
        ("luce_edu/show.py", "Source.gone", "Source.gone"),
        ("csrc/gone.cu", "megakernel", "csrc/gone.cu: no such file"),
        ("/etc/passwd", None, "csrc/ or luce_edu/"),
        (3, None, "got 3"),
        (rms_norm, "x", "goes with a path"),
    ],
)
def test_a_region_that_is_not_there_is_an_error_that_names_it(what, name, message):
    with pytest.raises(ValueError, match=message):
        show_source(what, name)


def line_of(path, text):
    return next(n for n, line in enumerate((ROOT / path).read_text().split("\n"), 1) if text in line)


def test_a_line_is_shown_with_its_instructions_in_the_first_kernel_that_has_any():
    line = line_of("csrc/rms_norm.cuh", "squares = fmaf")
    listing = find_ptx("csrc/rms_norm.cuh", line=line)
    (made,) = listing.instructions
    assert listing.kernel == "rms_norm of per_op.cu" and listing.arch == "compute_89"
    assert listing.source.first_line == line and "fmaf" in listing.source.text
    assert [text.split()[0] for text in made] == ["fma.rn.f32"]
    assert find_ptx("csrc/rms_norm.cuh", line=line, kernel="megakernel").kernel == "megakernel of megakernel.cu"
    assert find_ptx("csrc/exchange.cuh", "await").kernel == "streaming of streaming.cu"


def test_a_region_has_its_instructions_under_the_line_that_they_are_of():
    listing = find_ptx("csrc/block.cuh", "<warp_sum>", kernel="rms_norm")
    (loop,) = (made for made in listing.instructions if made)
    assert "__shfl_xor_sync" in listing.source.text.split("\n")[listing.instructions.index(loop)]
    assert [sum(text.startswith(name) for text in loop) for name in ("shfl.sync.bfly.b32", "add.f32")] == [5, 5]


def test_of_a_line_with_hundreds_of_instructions_the_first_are_shown():
    listing = find_ptx("csrc/delta_rule.cuh", "delta_rule_tile", kernel="delta_rule")
    most = max(map(len, listing.instructions))
    assert most > MOST_INSTRUCTIONS and f"... and {most - MOST_INSTRUCTIONS} more" in repr(listing)
    shown = html.unescape(re.sub(r"<[^>]*>", "", listing._repr_html_().partition("<pre")[2].partition(">")[2]))
    assert [line.rstrip() for line in shown.split("\n")] == repr(listing).split("\n")[1:]


def test_a_cell_is_shown_with_its_instructions_and_its_own_line_numbers():
    text = "int i = blockIdx.x * blockDim.x + threadIdx.x;\nif (i < n) y[i] = x[i] + r[i];\n"
    verdict = Verdict(Attempt("add", "torch.add", text))
    (made,) = find_ptx(verdict, line=3).instructions
    assert [text.split()[0] for text in made if text.startswith(("ld", "add.f32", "st"))] == [
        "ld.global.f32", "ld.global.f32", "add.f32", "st.global.f32"
    ]  # fmt: skip
    whole = find_ptx(verdict)
    assert whole.source.first_line == 2 and whole.instructions[1] == made and len(whole.instructions) == 2
    for wrong in ({"line": 1}, {"line": 4}, {"name": "add"}, {"kernel": "sub"}):
        with pytest.raises(ValueError, match="add"):
            find_ptx(verdict, **wrong)


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        ("csrc/rms_norm.cuh", {"line": 1}, "no instruction"),  # a comment
        ("csrc/rms_norm.cuh", {"line": 0}, "line: .*got 0"),
        ("csrc/rms_norm.cuh", {"line": 10_000}, "line: .*got 10000"),
        ("csrc/rms_norm.cuh", {"line": "23"}, "line: .*got '23'"),
        ("csrc/rms_norm.cuh", {"name": "gone"}, "gone"),
        ("csrc/rms_norm.cuh", {"name": "block_rms_norm", "kernel": "gone"}, "gone"),
        ("csrc/rms_norm.cuh", {"name": "block_rms_norm", "kernel": "argmax"}, "no instruction"),
        ("csrc/rms_norm.cuh", {}, "either"),
        ("csrc/rms_norm.cuh", {"name": "block_rms_norm", "line": 23}, "either"),
        ("csrc/gone.cuh", {"line": 1}, "no such file"),
        ("luce_edu/show.py", {"line": 1}, "csrc/"),
        (3, {}, "got 3"),
    ],
)
def test_a_request_without_instructions_is_an_error(what, arguments, message):
    with pytest.raises(ValueError, match=message):
        show_ptx(what, **arguments)


def shown_in_notebooks():
    """The arguments of every show_source("path", "name") in the notebooks."""
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] != "code" or "show_source" not in code:
                continue
            for node in ast.walk(ast.parse(TransformerManager().transform_cell(code))):  # magics become calls
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source":
                    arguments = tuple(arg.value for arg in node.args if isinstance(arg, ast.Constant))
                    if arguments:  # a call with an object is tested by running the notebook
                        yield arguments


@pytest.mark.parametrize("arguments", sorted(set(shown_in_notebooks())), ids=" ".join)
def test_every_region_shown_in_a_notebook_exists(arguments):
    assert find_source(*arguments).text
