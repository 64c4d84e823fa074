"""Two magics for notebooks, after `%load_ext luce_edu`.

    %%kernel NAME --against reference.rms_norm      compile the cell as CUDA C++, check it, count the bytes it moves
    %kernels                                        list the references that a kernel can be checked against
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
from luce_edu.lab import sanitize
from luce_edu.machine.cubin import ARCHITECTURES
from luce_edu.measure.profile import find_profiled_card

RUNS = (None, "kernel", "wrong", "time")  # kinds of verdict on a kernel that can be launched


class KernelRefused(AssertionError):
    """A cell whose kernel did not pass its check, or passed although --wrong says that it should not."""

    def _render_traceback_(self) -> list[str]:
        """Show the verdict without a Python traceback, as the error is in no line of Python."""
        return str(self).split("\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"%%kernel: {message}\n{self.format_usage().strip()}")


def _parser() -> _Parser:
    parser = _Parser(prog="%%kernel", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="name of the kernel in the cell")
    parser.add_argument("--against", metavar="REFERENCE", help="what the kernel computes; see %%kernels")
    parser.add_argument("--exercise", metavar="MODULE.NAME", help="check an exercise, instead of name and reference")
    parser.add_argument("--grid", metavar="BLOCKS", help="number of blocks, such as rows/8; rounded up")
    parser.add_argument("--block", type=int, metavar="THREADS")
    parser.add_argument("--smem", default="0", metavar="BYTES", help="dynamic shared memory per block, such as 4*cols")
    parser.add_argument("--arch", default="sm_86", choices=ARCHITECTURES, help="architecture whose registers to report")
    parser.add_argument("--seed", type=int, help="seed of the inputs (default: new inputs each time)")
    parser.add_argument(
        "--instructions", type=int, default=INSTRUCTIONS, metavar="N",
        help="stop a launch after this many instructions of its warps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--as", dest="variable", metavar="VARIABLE", help="keep the verdict in this variable")
    parser.add_argument("--profile", action="store_true", help="show modelled time and a heat map of a right kernel")
    parser.add_argument("--card", metavar="NAME", help="card for --profile (default: LUCE_CARD, or an RTX 3090)")
    parser.add_argument("--sanitize", action="store_true", help="report the rules that the kernel breaks, with lines")
    parser.add_argument("--wrong", action="store_true", help="the cell shows a mistake: raise if it passes")
    return parser


@magics_class
class KernelMagics(Magics):
    """The magics %%kernel and %kernels."""

    @cell_magic
    def kernel(self, line: str, cell: str) -> None:
        """Compile the cell as CUDA C++, check it, and show verdict, registers and traffic."""
        try:
            args = _parser().parse_args(shlex.split(line))
        except ValueError as error:  # a quote that is not closed
            raise UsageError(f"%%kernel: {error}") from None
        try:
            if args.exercise:
                if vars(args) != vars(_parser().parse_args(["--exercise", args.exercise])):
                    raise UsageError("%%kernel: an exercise sets name, reference and sizes; give --exercise alone")
                return find_exercise(args.exercise).check(cell)
            verdict = self._try(args, cell)
        except ValueError as error:
            raise KernelRefused(f"%%kernel: {error}") from None
        if args.variable:
            self.shell.user_ns[args.variable] = verdict
        clean = True
        if args.sanitize and verdict.kind in RUNS:
            report = sanitize(verdict, instructions=args.instructions)
            clean = report.clean
            display(report)
        if args.wrong and verdict.passed and clean:
            raise KernelRefused(f"{args.name} passes, although --wrong says that it has a mistake")
        if not args.wrong and not verdict.passed:
            raise KernelRefused(str(verdict))
        display(verdict)
        if not args.wrong and not clean:
            raise KernelRefused(f"{args.name} computes what it should, and breaks a rule: see above")
        if verdict.profile:
            display(find_heat(verdict))

    @staticmethod
    def _try(args, cell: str) -> Verdict:
        if not args.name or not args.name.isidentifier():
            raise UsageError("%%kernel: expected the kernel's name: %%kernel rms_norm --against reference.rms_norm")
        if not args.against:
            raise UsageError(f"%%kernel: expected --against with one of {', '.join(SPECS)}")
        if not 0 < args.instructions < 2**63:
            raise UsageError(f"%%kernel: --instructions must be from 1 to 2**63 - 1, got {args.instructions}")
        if args.seed is not None and not 0 <= args.seed < 2**32:
            raise UsageError(f"%%kernel: --seed must be from 0 to 2**32 - 1, got {args.seed}")
        if args.variable is not None and (not args.variable.isidentifier() or iskeyword(args.variable)):
            raise UsageError(f"%%kernel: --as expects the name of a variable, got {args.variable!r}")
        if args.card and not args.profile:
            raise UsageError("%%kernel: --card chooses the card for --profile; add --profile")
        find_spec(args.against)
        attempt = Attempt(
            args.name, args.against, cell, args.grid, args.block, args.smem, args.arch, args.seed,
            profile_on=find_profiled_card(args.card) if args.profile else None,
        )  # fmt: skip
        return try_kernel(attempt, instructions=args.instructions)

    @line_magic
    def kernels(self, line: str) -> None:
        """List the references that a kernel can be checked against."""
        for spec in SPECS.values():
            print(f"--against {spec.name}\n    {spec.computes}\n    {spec.signature}")
            print(f"    {spec.grid} blocks of {spec.block} threads{'; ' + spec.needs if spec.needs else ''}")


def load(ipython) -> None:
    """Register the magics."""
    ipython.register_magics(KernelMagics)
