"""What a notebook shows is what the file holds, and a region that is gone is an error."""

import ast
import json
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from luce_edu.reference.rms_norm import rms_norm
from luce_edu.show import find_source, show_source

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))

REGIONS = [
    ("csrc/grid_barrier.cuh", "grid_barrier", "__device__", "}"),
    ("csrc/grid_barrier.cuh", "GridBarrier", "struct GridBarrier {", "};"),
    ("csrc/primitives.cuh", "bf16x8", "// Eight bf16", "};"),  # with the comment above, and alignas(16)
    ("csrc/per_layer.cu", "delta_rule", "KERNEL delta_rule", "}"),  # behind a macro
    ("csrc/megakernel.cu", "megakernel", 'extern "C"', "}"),  # begins on the line above its name
    ("csrc/matvec.cuh", "loads_in_flight", "constexpr int", "waits"),
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
    """csrc(text) makes csrc/marks.cuh of it."""
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
    with pytest.raises(ValueError, match=r"csrc/marks.cuh: expected exactly one <x>, found [023]"):
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


def test_a_line_with_less_indent_than_the_first_is_shown_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("luce_edu.show.csrc_dir", lambda: tmp_path)
    (tmp_path / "a.cuh").write_text("    // <loop>\n    int n;\n#pragma unroll\n    for (;;);\n    // </loop>\n")
    assert find_source("csrc/a.cuh", "<loop>").text == "int n;\n#pragma unroll\nfor (;;);"


def test_an_object_shows_the_same_as_its_path():
    assert find_source(rms_norm) == find_source("luce_edu/reference/rms_norm.py", "rms_norm")
    assert rms_norm.__doc__.split("\n")[0] in repr(find_source(rms_norm))


def test_html_and_text_hold_the_same_characters():
    import html
    import re

    source = find_source("csrc/megakernel.cu", "megakernel")
    shown = html.unescape(re.sub(r"<[^>]*>", "", source._repr_html_().partition("<pre")[2].partition(">")[2]))
    assert [line.rstrip() for line in shown.split("\n")] == repr(source).split("\n")[1:]


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("csrc/grid_barrier.cuh", "gone", "csrc/grid_barrier.cuh.*gone"),
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


def shown_in_notebooks():
    """Every show_source("path", "name") in the notebooks' code."""
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] != "code" or "show_source" not in code:
                continue
            for node in ast.walk(ast.parse(TransformerManager().transform_cell(code))):  # magics become calls
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source":
                    arguments = tuple(arg.value for arg in node.args if isinstance(arg, ast.Constant))
                    if arguments:  # an object in place of a path is found by running the notebook
                        yield arguments


@pytest.mark.parametrize("arguments", sorted(set(shown_in_notebooks())), ids=" ".join)
def test_what_the_notebooks_show_is_there(arguments):
    assert find_source(*arguments).text
