"""The checkers of notebook 09 accept right answers, and refuse wrong ones with a reason."""

import pytest
from answers import checker_tests

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
    # All blocks write the same values, so results are right, but these writes are a race.
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


COUNTS = {"a formula": lambda n: 1 + 5 * n, "a sum": lambda n: sum([5] * n, 1)}
WRONG_COUNTS = {
    "no barrier before the layers": lambda n: 5 * n, "one too many": lambda n: 2 + 5 * n,
    "three a layer": lambda n: 1 + 3 * n, "of one model": lambda n: 41, "nothing": lambda n: None, "a number": 41,
}  # fmt: skip
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.fewer_barriers, {"own copy": (OWN_COPY, "40 .*41")}, WRONG), (exercises.barriers, COUNTS, WRONG_COUNTS)
)
