"""The checkers of notebook 08 accept right answers in several forms, and refuse wrong ones with a reason."""

import json
from pathlib import Path

from answers import checker_tests

from luce_edu.exercises import barriers as exercises

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "08_barriers_races_deadlocks.ipynb"
BROKEN = {
    "order": ("add_release(word, share)", "atomicAdd(word, share)"),
    "equally often": ("grid_barrier(word);", "if (blockIdx.x < 3) grid_barrier(word);"),
    "resident": 83,
}
RIGHT_BREAKS = {
    "no release": BROKEN,
    "no acquire, one trip less": BROKEN | {"order": ("load_acquire(word)", "*(volatile unsigned*)word"),
                                           "equally often": ("r < rounds", "r < rounds - int(blockIdx.x % 2)")},
    "no first barrier of the block": BROKEN | {"order": ("31;\n    __syncthreads();", "31;"), "resident": 83.0},
}  # fmt: skip
WRONG_BREAKS = {
    "a test sees it": (BROKEN | {"order": ("    }\n    __syncthreads();", "    }")}, "a test would find the fault"),
    "it hangs": (BROKEN | {"order": ("(gridDim.x - 1)", "gridDim.x")}, "fails in another way"),
    "nothing is broken": (BROKEN | {"order": ("share;", "0u;")} | {"order": ("== 0) {}", "== 0u) {}")}, "no race"),
    "a plain count": (BROKEN | {"order": ("add_release(word, share)", "*word; *word += share")}, "race on mid"),
    "no block at all": (BROKEN | {"equally often": ("grid_barrier(word);", "")}, "nothing hangs"),
    "not even one block": (BROKEN | {"equally often": ("grid_barrier(word);", "while (true) grid_barrier(word);")},
                           "with one block"),
    "a grid that fits": (BROKEN | {"resident": 82}, "holds 82 blocks"),
    "a grid too large": (BROKEN | {"resident": 164}, "a smaller one"),
    "a text that is not there": (BROKEN | {"order": ("add_relaxed", "")}, "0 times"),
    "not C++": (BROKEN | {"order": ("word, share)", "word, )")}, "does not compile"),
    "one text": (BROKEN | {"order": "atomicAdd"}, "two texts"),
    "two of three": ({"order": BROKEN["order"]}, "equally often"),
}  # fmt: skip

LOOP = exercises.uneven.hole.removesuffix("}")  # all but the end of the kernel
MID, OUT = (line.strip() for line in LOOP.split("\n") if "] = " in line)
UNEVEN = {
    "rounds": """\
    for (int first = 0; first < tokens; first += gridDim.x) {
        const int t = first + blockIdx.x;
        if (t < tokens) MID
        grid_barrier(barrier);
        if (t < tokens) OUT
    }
""",
    "two loops": """\
    for (int t = blockIdx.x; t < tokens; t += gridDim.x) MID
    grid_barrier(barrier);
    for (int t = blockIdx.x; t < tokens; t += gridDim.x) OUT
""",
    "the others call it too": LOOP + """\
    if (tokens % gridDim.x != 0 && blockIdx.x >= tokens % gridDim.x) grid_barrier(barrier);
""",
}
WRONG_UNEVEN = {
    "no barrier": (LOOP.replace("grid_barrier(barrier);", ""), "race"),
    "the block's barrier": (LOOP.replace("grid_barrier(barrier);", "__syncthreads();"), "race"),
    "the rest left out": (LOOP.replace("t < tokens;", "t < tokens / gridDim.x * gridDim.x;"), "is right"),
    "beyond the end": (LOOP.replace("t < tokens;", "t < tokens + gridDim.x;"), "out of bounds"),
    "still uneven": (LOOP.replace("int t", "unsigned t"), "deadlock"),
    "nothing from mid": (
        "    for (int t = blockIdx.x; t < tokens; t += gridDim.x) {\n        MID\n"
        "        out[t * cols + c] = 2.0f * x[t * cols + c] + (t > 0 ? 2.0f * x[(t - 1) * cols + c] : 0.0f);\n    }\n",
        "Keep one",
    ),
    "not C++": ("    for (;;\n", "does not compile"),
}


def uneven(answers):
    def text(loop):
        return exercises.uneven.skeleton.replace(LOOP, loop.replace("MID", MID).replace("OUT", OUT))

    return {name: (text(a[0]), a[1]) if isinstance(a, tuple) else text(a) for name, a in answers.items()}


SUM = """\
__global__ void running_sum(const float* x, float* y, unsigned* ready) {
    const int b = blockIdx.x, i = b * blockDim.x + threadIdx.x;
    float sum = x[i];
    if (b > 0) {
        if (threadIdx.x == 0) wait_while_equal(&ready[b - 1], 0u);
        __syncthreads();
        sum += y[i - blockDim.x];
    }
    y[i] = sum;
    __syncthreads();
    if (threadIdx.x == 0) store_release(&ready[b], 1u);
}
"""
WAIT, RELEASE = "wait_while_equal(&ready[b - 1], 0u);", "store_release(&ready[b], 1u)"
ALL_WAIT = SUM.replace("if (threadIdx.x == 0) wait", "wait").replace("        __syncthreads();\n", "")
FENCES = SUM.replace(WAIT, "{ while (atomicAdd(&ready[b - 1], 0u) == 0u) {} __threadfence(); }")
RIGHT_SUMS = {
    "thread 0 waits": SUM,
    "all wait": ALL_WAIT,
    "fences": FENCES.replace(RELEASE, "{ __threadfence(); atomicExch(&ready[b], 1u); }"),
    "each thread signals": SUM.replace("    __syncthreads();\n    if (threadIdx.x == 0) " + RELEASE,
                                       "    add_release(&ready[b], 1u)").replace(
        WAIT, "while (load_acquire(&ready[b - 1]) < blockDim.x) {}"),
}  # fmt: skip
WRONG_SUMS = {
    "a plain wait": (SUM.replace(WAIT, "while (ready[b - 1] == 0) {}"), "race|must end"),
    "the block does not wait": (SUM.replace("        __syncthreads();\n", ""), "race"),
    "the block is not done": (SUM.replace("sum;\n    __syncthreads();", "sum;"), "race"),
    "no release": (SUM.replace(RELEASE, "atomicExch(&ready[b], 1u)"), "race"),
    "no wait": (SUM.replace(WAIT, ";"), "race"),
    "waits for itself": (SUM.replace("ready[b - 1]", "ready[b]"), "deadlock"),
    "never signals": (SUM.replace(RELEASE, ""), "deadlock"),
    "the sum of two rows": (SUM.replace("y[i - blockDim.x]", "x[i - blockDim.x]"), "is right"),
    "no block needs another": (SUM[: SUM.index("    const")] + """\
    float sum = 0.0f;
    for (int b = 0; b <= blockIdx.x; ++b) sum += x[b * blockDim.x + threadIdx.x];
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
""", "from y"),
    "another name": (SUM.replace("running_sum", "sums"), "named running_sum"),
    "not C++": (SUM.replace("y[i] = sum;", "y[i] = ;"), "does not compile"),
    "a number": (3, "as text"),
}  # fmt: skip

test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.break_rules, RIGHT_BREAKS, WRONG_BREAKS),
    (exercises.uneven, uneven(UNEVEN), uneven(WRONG_UNEVEN)),
    (exercises.running_sum, RIGHT_SUMS, WRONG_SUMS),
)


def test_the_notebook_has_the_checkers_barrier_and_kernel():
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
    for text in (exercises.BARRIER, exercises.EXCHANGE):
        assert sum(text in cell for cell in cells) == 1
