"""`%load_ext luce_edu` gives notebooks two words.

    %%kernel NAME --against reference.rms_norm      the cell is CUDA C++; compile it, check it, count what it moves
    %kernels                                        what a kernel can be checked against
"""

from __future__ import annotations

import argparse
import shlex
from keyword import iskeyword

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import display

from luce_edu.exercises.base import find_exercise
from luce_edu.heat import find_heat
from luce_edu.inline.specs import SPECS, find_spec
from luce_edu.inline.trial import INSTRUCTIONS, Attempt, Verdict, try_kernel
from luce_edu.machine.cubin import ARCHITECTURES
from luce_edu.measure.profile import find_profiled_card


class KernelRefused(AssertionError):
    """A cell whose kernel did not pass its check, or passed one that it was meant to fail."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the verdict alone, as no line of Python is at fault."""
        return str(self).split("\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"%%kernel: {message}\n{self.format_usage().strip()}")


def _parser() -> _Parser:
    parser = _Parser(prog="%%kernel", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="of the kernel in the cell")
    parser.add_argument("--against", metavar="REFERENCE", help="what it computes: see %%kernels")
    parser.add_argument("--exercise", metavar="MODULE.NAME", help="an exercise, in place of a name and a reference")
    parser.add_argument("--grid", metavar="BLOCKS", help="such as rows/8, rounded up")
    parser.add_argument("--block", type=int, metavar="THREADS")
    parser.add_argument("--smem", default="0", metavar="BYTES", help="dynamic shared memory, such as 4*cols")
    parser.add_argument("--arch", default="sm_86", choices=ARCHITECTURES, help="whose registers to report")
    parser.add_argument("--seed", type=int, help="draws the inputs; fresh ones without it")
    parser.add_argument(
        "--instructions", type=int, default=INSTRUCTIONS, metavar="N",
        help="that the warps of a launch may execute before it is stopped (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--as", dest="variable", metavar="VARIABLE", help="keeps the verdict under this name")
    parser.add_argument("--profile", action="store_true", help="modelled time of a right kernel, and a heat map")
    parser.add_argument("--card", metavar="NAME", help="for --profile (default: LUCE_CARD, or an RTX 3090)")
    parser.add_argument("--wrong", action="store_true", help="the cell shows a mistake: passing is what raises")
    return parser


@magics_class
class KernelMagics(Magics):
    @cell_magic
    def kernel(self, line: str, cell: str) -> None:
        """Compile the cell as CUDA C++, check it, and show verdict, registers and traffic."""
        try:
            args = _parser().parse_args(shlex.split(line))
        except ValueError as error:  # an open quote
            raise UsageError(f"%%kernel: {error}") from None
        try:
            if args.exercise:
                if vars(args) != vars(_parser().parse_args(["--exercise", args.exercise])):
                    raise UsageError("%%kernel: --exercise brings its own name, reference and sizes")
                return find_exercise(args.exercise).check(cell)
            verdict = self._try(args, cell)
        except ValueError as error:
            raise KernelRefused(f"%%kernel: {error}") from None
        if args.variable:
            self.shell.user_ns[args.variable] = verdict
        if args.wrong and verdict.passed:
            raise KernelRefused(f"{args.name} was meant to be wrong, and passes")
        if not args.wrong and not verdict.passed:
            raise KernelRefused(str(verdict))
        display(verdict)
        if verdict.profile:
            display(find_heat(verdict))

    @staticmethod
    def _try(args, cell: str) -> Verdict:
        if not args.name or not args.name.isidentifier():
            raise UsageError("%%kernel: expected the kernel's name: %%kernel rms_norm --against reference.rms_norm")
        if not args.against:
            raise UsageError(f"%%kernel: expected --against and one of {', '.join(SPECS)}")
        if not 0 < args.instructions < 2**63:
            raise UsageError(f"%%kernel: --instructions must be from 1 to 2**63 - 1, got {args.instructions}")
        if args.seed is not None and not 0 <= args.seed < 2**32:
            raise UsageError(f"%%kernel: --seed must be from 0 to 2**32 - 1, got {args.seed}")
        if args.variable is not None and (not args.variable.isidentifier() or iskeyword(args.variable)):
            raise UsageError(f"%%kernel: --as {args.variable!r} is no name for a variable")
        if args.card and not args.profile:
            raise UsageError("%%kernel: --card says for which card --profile models the time; add --profile")
        find_spec(args.against)
        attempt = Attempt(
            args.name, args.against, cell, args.grid, args.block, args.smem, args.arch, args.seed,
            profile_on=find_profiled_card(args.card) if args.profile else None,
        )  # fmt: skip
        return try_kernel(attempt, instructions=args.instructions)

    @line_magic
    def kernels(self, line: str) -> None:
        """Show what a kernel can be checked against."""
        for spec in SPECS.values():
            print(f"--against {spec.name}\n    {spec.computes}\n    {spec.signature}")
            print(f"    {spec.grid} blocks of {spec.block} threads{'; ' + spec.needs if spec.needs else ''}")


def load(ipython) -> None:
    """Register the magics."""
    ipython.register_magics(KernelMagics)
