"""Exercises of notebook 09: count the grid barriers per token, and remove one of them."""

from __future__ import annotations

import random

import torch

from luce_edu.backends import make_backend
from luce_edu.config import ModelConfig
from luce_edu.errors import CompileError, KernelError
from luce_edu.exercises.base import Exercise, WrongAnswer, call, close, edited
from luce_edu.faults import Fault, planted
from luce_edu.models import DATA, Model
from luce_edu.paths import csrc_dir
from luce_edu.stages import decoder
from luce_edu.verification import verify
from luce_edu.weights import random_weights

KERNEL = "megakernel.cu"
SEEDS = (1, 2, 3)  # each draws other tokens and another hostile order of warps
STEPS = 2
CARD = "laptop"  # runs four blocks of 512 threads at once, enough for a race between blocks
INSTRUCTIONS = 10**9  # most warp instructions of a launch; a correct token of `tiny` takes a million
# Words by which blocks can wait for each other, and words that can hide such a word. A pause does not order the blocks,
# and a barrier written by hand is still a barrier.
WAITING = (
    "__nanosleep", "atomic", "load_acquire", "store_release", "add_release", "add_acq_rel", "wait_while_equal",
    "last_block_to_arrive", "volatile", "asm", "#define", "##",
)  # fmt: skip
PASSED = "        wait_while_equal(&barrier->word, before, top_bit);\n"  # in csrc/grid_barrier.cuh


def _barriers(answer) -> str:
    for layers in (1, 8, 24, random.randrange(25, 200)):
        close(
            call(answer, layers), 1 + 5 * layers, tolerance=0,
            hint=f"Case: {layers} layers. Go down the phase table: is there a barrier before the layers, how many are "
            "there in a layer, and is there one after the head?",
        )  # fmt: skip
    return (
        "Right for 1, 8, 24 and a drawn number of layers. Both kinds of layer have five barriers, so the kind does not "
        "matter."
    )


barriers = Exercise(
    name="barriers",
    judge=_barriers,
    spec="The number of grid barriers per token, for any number of layers of either kind.",
    skeleton='''\
def barriers(num_hidden_layers):
    """Return the grid barriers that the megakernel passes for one token."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one line",
)


def _fewer_barriers(answer) -> str:
    edited((csrc_dir() / KERNEL).read_text(encoding="utf-8"), answer, f"csrc/{KERNEL}")
    for new in answer.values():
        waiting = [word for word in WAITING if word in new]
        if waiting:
            raise WrongAnswer(f"Your edit contains {waiting[0]}. After it, no block should wait for another.")
    print(f"compiling your {KERNEL}, then running it in {len(SEEDS)} hostile orders of warps ...", flush=True)
    barriers, barriers_before = _judge_kernel(answer)
    if not barriers < barriers_before:
        raise WrongAnswer(f"The results are right, but the kernel still has {barriers} barriers per token.")
    return (
        f"{barriers} barriers per token instead of {barriers_before}, and all results are right in {len(SEEDS)} "
        "hostile orders of warps."
    )


fewer_barriers = Exercise(
    name="fewer_barriers",
    judge=_fewer_barriers,
    spec="Edit csrc/megakernel.cu so that a token passes at least one barrier fewer and no result changes.",
    skeleton="""\
edits = ...   # {"text in megakernel.cu": "its replacement", ...}
""",
    hole='...   # {"text in megakernel.cu": "its replacement", ...}',
    budget="20 minutes, five to ten lines of CUDA",
)


def _judge_kernel(edits: dict[str, str]) -> tuple[int, int]:
    """Return the barriers per token on the virtual GPU, of the megakernel with these edits and of the unchanged one.

    The checker counts for itself: every block that leaves a grid barrier adds 1 to a word in memory. Its address is
    only in this copy of grid_barrier.cuh, so that no edit of the kernel can lower the count. Raises WrongAnswer if the
    kernel does not compile or gives a wrong result.
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
                raise WrongAnswer(f"In the hostile order of seed {seed}: {row.problems[0]}")
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
        raise WrongAnswer("The blocks do not all pass the same number of barriers per token.")
    whole = decoder("megakernel", model, device="host", max_seq_len=1)
    whole.step(0)
    return barriers, whole.barriers
