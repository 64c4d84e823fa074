"""A heat map shows the cycles of each line, with those of inlined functions, in text and in HTML."""

import re

import numpy as np
import pytest
from cells import A_WARP_A_ROW

import luce_edu
from luce_edu.heat import find_heat, show_heat
from luce_edu.inline.trial import Attempt, try_kernel
from luce_edu.machine.cards import find_card


@pytest.fixture(scope="module")
def token():
    return luce_edu.profile("per_layer", card="laptop", position=5)


@pytest.fixture(scope="module")
def verdict():
    """The verdict of a cell; in its line 5, only an inlined function of csrc/ uses the loaded weights."""
    return try_kernel(Attempt("sums", "F.linear", A_WARP_A_ROW, grid="rows/8", profile_on=find_card("laptop")))


def test_a_cell_has_all_waits_with_those_of_what_was_inlined(verdict):
    heat = find_heat(verdict)
    assert heat.source.first_line == 2 and len(heat.cycles) == 6
    assert heat.shares.sum() == pytest.approx(1, abs=1e-6)
    assert heat.shares.argmax() == 3 and heat.shares[3] > 0.5
    assert heat.cycles[:, 0].sum() == pytest.approx(verdict.profile.instructions, rel=0.01)  # without each warp's exit
    inlined = [line for line in verdict.profile.lines if line.file.startswith("csrc/")]
    assert sum(line.share for line in inlined) > 0.5, "the cell's own lines have less than half of the waits"


def test_a_region_has_a_part_of_the_waits_and_inner_lines_keep_their_own(token):
    region, file = find_heat("csrc/matvec.cuh", token, "warp_dot"), find_heat("csrc/matvec.cuh", token)
    assert 0 < region.shares.sum() <= file.shares.sum() < 1
    number = region.source.text.split("\n").index(next(t for t in region.source.text.split("\n") if "dot8(" in t))
    at = region.source.first_line + number - 1
    assert region.cycles[number, 0] > file.cycles[at, 0], "in the file, dot8 has its own lines"


def test_text_and_html_say_the_same_and_the_hottest_line_is_the_darkest(verdict):
    heat = find_heat(verdict)
    said, shown = str(heat).split("\n"), heat._repr_html_()
    assert len(said) == 2 + 6 and "97" not in said[1] and "memory" in said[1]
    colours = [float(found) for found in re.findall(r"rgba\([\d, ]+, ([\d.]+)\)", shown)]
    assert len(colours) == 6 and np.argmax(colours) == heat.shares.argmax() and max(colours) == 0.6
    assert f"{heat.shares[3]:.1%}" in said[5] and f"{heat.shares[3]:.1%}" in shown


@pytest.mark.parametrize(
    "arguments, word",
    [(("csrc/matvec.cuh", None, "warp_dot"), "luce_edu.profile"), (("csrc/nothing.cuh", "token"), "no such file"),
     (("csrc/matvec.cuh", "token", "nothing"), "found 0"), (("csrc/megakernel.cu", "token"), "executed none"),
     (("verdict", None, "name"), "only with a path"), ((3, "token"), "expected a path")],
)  # fmt: skip
def test_bad_input_is_one_clear_line(arguments, word, token, verdict):
    given = [{"token": token, "verdict": verdict}.get(a, a) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(ValueError, match=word) as refused:
        show_heat(*given)
    assert "\n" not in str(refused.value)


def test_a_verdict_without_a_profile_says_what_to_type(verdict):
    plain = try_kernel(Attempt("sums", "F.linear", A_WARP_A_ROW, grid="rows/8"))
    with pytest.raises(ValueError, match="--profile"):
        find_heat(plain)
    with pytest.raises(ValueError, match="--profile"):
        plain.us  # noqa: B018
    assert plain.least_us == 0
