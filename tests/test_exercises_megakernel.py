"""The checkers of notebook 09 take right answers however they are written, and refuse wrong ones by name."""

import pytest

from luce_edu.exercises import megakernel as exercises
from luce_edu.exercises.base import WrongAnswer

EMBED = "    embed_phase(m.embed_tokens, token, m.hidden_states);\n    grid_barrier(m.barrier);\n"
INPUT = "const float* x = m.hidden_states + l * hidden_size;"
ATTENTION = "&shared.attention);\n            grid_barrier(m.barrier);"
OWN_COPY = {
    EMBED: """    __shared__ float embedding[hidden_size];
    const bf16* row = m.embed_tokens + static_cast<size_t>(token) * hidden_size;
    for (int i = threadIdx.x; i < hidden_size; i += block_threads) embedding[i] = to_float(row[i]);
    embed_phase(m.embed_tokens, token, m.hidden_states);
    __syncthreads();
""",
    INPUT: "const float* x = l == 0 ? embedding : m.hidden_states + l * hidden_size;",
}
EVERY_BLOCK_WRITES = {
    EMBED: """    for (int i = threadIdx.x; i < hidden_size; i += block_threads)
        m.hidden_states[i] = to_float(m.embed_tokens[static_cast<size_t>(token) * hidden_size + i]);
"""
}
WITHOUT = EMBED.replace("    grid_barrier(m.barrier);\n", "")
WRONG = {
    # Right in its numbers, as all blocks write the same; but nothing says that they do.
    "every block writes what all read": (EVERY_BLOCK_WRITES, "race on hidden_states"),
    "a barrier for the block only": ({EMBED: WITHOUT + "    __syncthreads();\n"}, "hostile order of seed"),
    "the barrier after attention dropped": (
        {ATTENTION: "&shared.attention);"},
        "hostile order|The virtual GPU says: .*(divergent barrier|out of bounds)",
    ),
    "not passed by block 0": ({EMBED: WITHOUT + "    if (blockIdx.x > 0) grid_barrier(m.barrier);\n"}, "deadlock"),
    "hidden_states[0] never written": (
        OWN_COPY | {EMBED: OWN_COPY[EMBED].replace("    embed_phase(m.embed_tokens, token, m.hidden_states);\n", "")},
        "embedding is the first",
    ),
    "the kernel's own count lowered": (
        {INPUT: INPUT + "\n        if (l == 0 && blockIdx.x == 0 && threadIdx.x == 0) m.barrier->passed -= 2;"},
        "still has 41",
    ),
    "a barrier of the same kind elsewhere": (
        {"struct Model {": "static __device__ GridBarrier elsewhere;\n\nstruct Model {",
         EMBED: WITHOUT + "    grid_barrier(&elsewhere);\n"},
        "still has 41",
    ),
    "not C++": ({INPUT: "const float* x = ;"}, "does not compile"),
}


def test_a_barrier_less_that_verifies_is_right(capsys):
    exercises.fewer_barriers.check(OWN_COPY)
    assert "40 barriers per token instead of 41" in capsys.readouterr().out


@pytest.mark.planted
@pytest.mark.parametrize("answer, reason", WRONG.values(), ids=WRONG)
def test_a_wrong_kernel_is_refused_with_the_reason(answer, reason):
    with pytest.raises(WrongAnswer, match=reason):
        exercises.fewer_barriers.check(answer)


@pytest.mark.planted
@pytest.mark.parametrize(
    "answer, reason",
    [({"grid_barrier(m.barrier);": ""}, "8 times"), ({"no such text": ""}, "0 times"), ({}, "expected a dict"),
     ("text", "expected a dict"), ({EMBED: None}, "expected text"), ({EMBED: "__nanosleep(9);"}, "__nanosleep"),
     ({EMBED: "while (load_acquire(&flag) == 0) {}"}, "load_acquire"),
     ({EMBED: "while (*(volatile unsigned*)flag == 0) {}"}, "volatile"),
     ({EMBED: "add##_release(&flag, 1u);"}, "##"), ({EMBED: 'asm("bar.sync 0;");'}, "asm")],
)  # fmt: skip
def test_an_answer_that_cannot_be_right_is_refused_before_anything_runs(answer, reason, monkeypatch):
    monkeypatch.setattr(exercises, "_judge_kernel", lambda edits: pytest.fail("something ran"))
    with pytest.raises(WrongAnswer, match=reason):
        exercises.fewer_barriers.check(answer)


@pytest.mark.parametrize("function", [lambda n: 1 + 5 * n, lambda n: sum([5] * n, 1)])
def test_barriers_of_the_phase_table_are_right(function, capsys):
    exercises.barriers.check(function)
    assert "right" in capsys.readouterr().out


@pytest.mark.planted
@pytest.mark.parametrize(
    "function", [lambda n: 5 * n, lambda n: 2 + 5 * n, lambda n: 1 + 3 * n, lambda n: 41, lambda n: None, 41]
)
def test_other_counts_are_wrong(function):
    with pytest.raises(WrongAnswer):
        exercises.barriers.check(function)
