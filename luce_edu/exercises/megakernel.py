"""Exercises of notebook 09: how many barriers a token passes, and one of them less."""

from __future__ import annotations

import random

import torch

from luce_edu.backends import make_backend
from luce_edu.config import ModelConfig
from luce_edu.errors import CompileError, KernelError
from luce_edu.exercises.base import Exercise, WrongAnswer, call, close
from luce_edu.faults import Fault, planted
from luce_edu.models import DATA, Model
from luce_edu.paths import csrc_dir
from luce_edu.stages import decoder
from luce_edu.verification import verify
from luce_edu.weights import random_weights

KERNEL = "megakernel.cu"
SEEDS = (1, 2, 3)  # each draws other tokens and another hostile order of warps
STEPS = 2
CARD = "laptop"  # holds four blocks of 512 threads, enough to disagree
INSTRUCTIONS = 10**9  # of the warps of a launch; a right token of `tiny` takes a million
# Words by which blocks wait for each other, or hope to, and by which such a word can be hidden. A pause is no barrier,
# and a second barrier is one.
WAITING = (
    "__nanosleep", "atomic", "load_acquire", "store_release", "add_release", "add_acq_rel", "wait_while_equal",
    "last_block_to_arrive", "volatile", "asm", "#define", "##",
)  # fmt: skip
PASSED = "        wait_while_equal(&barrier->word, before, top_bit);\n"  # in csrc/grid_barrier.cuh


def _barriers(answer) -> str:
    for layers in (1, 8, 24, random.randrange(25, 200)):
        close(
            call(answer, layers), 1 + 5 * layers, tolerance=0,
            hint=f"Case: {layers} layers. Walk down the phase table: what stands before the layers, how often each "
            "layer waits, and whether anything waits after the head.",
        )  # fmt: skip
    return "The kind of a layer does not matter: both kinds have five phases."


barriers = Exercise(
    name="barriers",
    judge=_barriers,
    spec="The grid barriers that a token passes, for any number of layers of either kind.",
    skeleton='''\
def barriers(num_hidden_layers):
    """Return the grid barriers that the megakernel passes for one token."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one line",
)


def _fewer_barriers(answer) -> str:
    before = (csrc_dir() / KERNEL).read_text(encoding="utf-8")
    if not isinstance(answer, dict) or not answer:
        raise WrongAnswer(f"expected a dict of texts and their replacements, got {answer!r}")
    for old, new in answer.items():
        if not isinstance(old, str) or not isinstance(new, str):
            raise WrongAnswer(f"expected text on both sides, got {old!r}: {new!r}")
        if before.count(old) != 1:
            raise WrongAnswer(f"this text is {before.count(old)} times in csrc/{KERNEL}, not once:\n{old}")
        waiting = [word for word in WAITING if word in new]
        if waiting:
            raise WrongAnswer(f"{waiting[0]}: find a way in which no block needs to wait for another.")
    print(f"compiling your {KERNEL}, then {len(SEEDS)} hostile orders ...", flush=True)
    barriers, barriers_before = _judge_kernel(answer)
    if not barriers < barriers_before:
        raise WrongAnswer(f"The results are right, but the kernel still passes {barriers} barriers a token.")
    return (
        f"{barriers} barriers a token in place of {barriers_before}, and it verifies under {len(SEEDS)} hostile orders."
    )


fewer_barriers = Exercise(
    name="fewer_barriers",
    judge=_fewer_barriers,
    spec="Edits of csrc/megakernel.cu after which a token passes at least one barrier less, and no result changes.",
    skeleton="""\
edits = ...   # {"text in megakernel.cu": "its replacement", ...}
""",
    hole='...   # {"text in megakernel.cu": "its replacement", ...}',
    budget="20 minutes, five to ten lines of CUDA",
)


def _judge_kernel(edits: dict[str, str]) -> tuple[int, int]:
    """Barriers a token of the megakernel with these edits, on the virtual GPU, and of the one that ships.

    The verdict rests on a count of its own: every block that leaves a grid barrier, whichever that is, adds 1 to memory
    whose address stands in this copy of grid_barrier.cuh alone, so no edit of the kernel can lower it. Raises
    WrongAnswer with what is wrong.
    """
    config = ModelConfig.from_file(DATA / "tiny" / "config.json")
    model = Model("random", config, random_weights(config), tokenizer=None, folder=None)
    passed = torch.zeros(1, dtype=torch.int32)
    count = f"        add_acq_rel(reinterpret_cast<unsigned*>({passed.data_ptr()}ull), 1u);\n"
    patches = [Fault("your edit", KERNEL, old, new) for old, new in edits.items()]
    patches.append(Fault("the checker's count", "grid_barrier.cuh", PASSED, PASSED + count))
    try:
        with planted(*patches) as tree:
            backend = make_backend("host", csrc_dir=tree, card=CARD, instructions=INSTRUCTIONS)
            backend.name_tensors({"the checker's count": passed})
            dec = decoder("megakernel", model, max_seq_len=STEPS, backend=backend)
        for seed in SEEDS:
            report = verify(
                model, stages=["megakernel"], device="host", steps=STEPS, seed=seed, make=lambda stage: dec
            )
            row = report.rows[0]
            if not row.passed:
                raise WrongAnswer(f"Under the hostile order of seed {seed}: {row.problems[0]}")
        passed.zero_()
        dec.reset()
        for token in range(STEPS):
            dec.step(token)
    except CompileError as error:
        raise WrongAnswer(f"It does not compile.\n{error}") from None
    except KernelError as error:
        raise WrongAnswer(f"The virtual GPU says: {error}") from None
    except ValueError as error:
        raise WrongAnswer(str(error)) from None
    barriers, rest = divmod(int(passed), STEPS * dec.ledger.entries[0].grid[0])
    if rest:
        raise WrongAnswer("Not every block passes the same number of barriers for every token.")
    whole = decoder("megakernel", model, device="host", max_seq_len=1)
    whole.step(0)
    return barriers, whole.barriers
