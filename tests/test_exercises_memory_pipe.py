"""The checkers of notebook 11 accept right answers in several forms, and refuse wrong ones with a reason."""

import math

import pytest
from answers import checker_tests

from luce_edu.exercises import memory_pipe as exercises
from luce_edu.exercises.base import WrongAnswer


def needed(gb_per_s, latency_us, gap_us, warps, slot_bytes):
    return math.ceil(gb_per_s * 1e3 * (latency_us + gap_us) / (warps * slot_bytes))


def by_counting(gb_per_s, latency_us, gap_us, warps, slot_bytes):
    slots = 1
    while slots * slot_bytes * warps < gb_per_s * (latency_us + gap_us) * 1000:
        slots += 1
    return float(slots)


SAID = r"\d slots for an H200.*modelled"
RIGHT_DEPTHS = {"rounded up": (needed, SAID), "counted": (by_counting, SAID)}
WRONG_DEPTHS = {
    "no gap": (lambda b, t, gap, w, s: needed(b, t, 0, w, s), "no warp request"),
    "no latency": (lambda b, t, gap, w, s: needed(b, 0, gap, w, s), "first of them"),
    "rounded down": (lambda b, t, gap, w, s: b * 1e3 * (t + gap) // (w * s), "bytes are missing"),
    "one more": (lambda *case: needed(*case) + 1, "One slot less"),
    "a thousand too few": (lambda b, *case: needed(b / 1000, *case), "1 GB/s"),
    "one warp": (lambda b, t, gap, w, s: needed(b, t, gap, 1, s), "whole card"),
    "not rounded": (lambda b, t, gap, w, s: b * 1e3 * (t + gap) / (w * s), "no whole number"),
    "a text": (lambda *case: "four", "expected a number"),
    "no function": (4, "expected a function"),
}


def filled(exercise, answers):
    def text(body):
        return exercise.skeleton.replace(exercise.hole, body + "\n") if isinstance(body, str) else body

    return {name: (text(a[0]), a[1]) if isinstance(a, tuple) else text(a) for name, a in answers.items()}


LOOP = "Word word; do word = load_word(p); while (tag_of(word) != tag); return value_of(word);"
RIGHT_WORDS = {
    "a loop": LOOP,
    "later tags too": LOOP.replace("!= tag", "< tag"),
    "an atomic": LOOP.replace("load_word(p)", "atomicAdd(const_cast<Word*>(p), 0ull)"),
    "volatile": LOOP.replace("load_word(p)", "*(const volatile Word*)p"),
}
WRONG_WORDS = {
    "tag not compared": ("return value_of(load_word(p));", "differs"),
    "any token's word": (LOOP.replace("!= tag", "== 0"), "differs"),
    "value before the tag": ("const float v = value_of(load_word(p)); while (tag_of(load_word(p)) != tag) {} return v;",
                             "differs"),
    "two halves": ("const volatile unsigned* h = (const volatile unsigned*)p; while (h[1] != tag) {} "
                   "return __uint_as_float(h[0]);", "differs"),
    "a plain load": (LOOP.replace("load_word(p)", "*p"), "must end"),
    "the next tag": (LOOP.replace("!= tag", "!= tag + 1"), "deadlock"),
    "value and tag swapped": (LOOP.replace("value_of", "tag_of"), "is right"),
    "not C++": ("return word;", "does not compile|undefined"),
    "a number": (3, "as text"),
}  # fmt: skip
TURN = """\
        const int p = i % 2;
        barrier_wait(&full[p], i / 2 % 2);
        w = place[p][31 - lane];
        __syncwarp();
        if (lane == 0 && i + 2 < slots) bulk_copy(place[p], stream + (i + 2) * 32, bytes, &full[p]);
"""
WAIT, SYNC = "barrier_wait(&full[p], i / 2 % 2);", "        __syncwarp();\n"
REQUEST = TURN.splitlines(keepends=True)[-1]
EARLY = TURN.replace(REQUEST, "").replace("        w =", REQUEST + "        w =")
RIGHT_TURNS = {
    "parity by division": TURN,
    "bits": TURN.replace("i / 2 % 2", "(i >> 1) & 1").replace("i % 2", "i & 1"),
    "lane 0 waits for all": TURN.replace(WAIT, f"if (lane == 0) {WAIT} __syncwarp();"),
    "the last lane requests": TURN.replace("lane == 0", "lane == 31"),
    "a block's barrier": TURN.replace("__syncwarp", "__syncthreads"),
}
WRONG_TURNS = {
    "parity of the turn": (TURN.replace("i / 2 % 2", "i % 2"), "deadlock|uninitialised"),
    "parity flipped": (TURN.replace("i / 2 % 2", "(i / 2 + 1) % 2"), "deadlock|uninitialised"),
    "no wait": (TURN.replace(WAIT, ""), "race"),
    "requested before it is read": (EARLY, "race"),
    "not all lanes have read": (TURN.replace(SYNC, ""), "race"),
    "beyond the end": (TURN.replace(" && i + 2 < slots", ""), "out of bounds"),
    "the same slot again": (TURN.replace("(i + 2)", "i"), "is right"),
    "every lane requests": (TURN.replace("lane == 0 && ", ""), "barrier"),
    "one lane waits": (TURN.replace(WAIT, f"if (lane == 0) {WAIT}"), "race"),
}  # fmt: skip

test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.slots_needed, RIGHT_DEPTHS, WRONG_DEPTHS),
    (exercises.await_word, filled(exercises.await_word, RIGHT_WORDS), filled(exercises.await_word, WRONG_WORDS)),
    (exercises.ring_turn, filled(exercises.ring_turn, RIGHT_TURNS), filled(exercises.ring_turn, WRONG_TURNS)),
)


@pytest.mark.planted
def test_the_rest_of_the_cell_must_stay_as_it_was():
    other = filled(exercises.await_word, {"a loop": LOOP})["a loop"].replace("publish(words", "publish(1 + words")
    with pytest.raises(WrongAnswer, match="only the line"):
        exercises.await_word.check(other)
