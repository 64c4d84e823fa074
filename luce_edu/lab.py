"""Find the rules that a kernel breaks, with source lines, threads and the element of memory.

    sanitize("megakernel")                                              one token of a stage, on tiny
    sanitize("per_layer.delta_rule", "race")                            a token with this kernel, with one tool
    sanitize(source, kernel="barrier", grid=8, block=64, args={"x": x}) CUDA C++ in a string
    sanitize(source, kernel="mine", against="torch.add")                the same on the inputs of a %%kernel cell
    sanitize(verdict)                                                   a %%kernel cell, kept with --as

The checks are those of the virtual GPU (luce_edu/machine). A tool is a choice of checks and of orders of warps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.errors import CompileError, KernelError, LaunchError, check_int
from luce_edu.faults import planted
from luce_edu.inline.pasted import code
from luce_edu.inline.specs import SPECS, find_spec
from luce_edu.inline.trial import CELL, Attempt, Verdict, cell_defines, first_error, one_line, prepare
from luce_edu.machine import Kernel
from luce_edu.machine.marks import Marks
from luce_edu.machine.report import Act, Scene
from luce_edu.measure.profile import PROMPT, find_profiled
from luce_edu.state import DecodeState
from luce_edu.tables import Tabular

SOURCE = "source"  # the compiler's name for a string of CUDA C++
POSITION = 40  # of a stage's token: more than one split of the cache
TOKENS = 65  # of a prompt: more than one chunk of the delta rule
KERNEL_INSTRUCTIONS = 5_000_000  # limit for the warps of one launch, except in a stage
RACE_ORDERS = (None, 0, 1)  # seeds for `race`; None is the usual order
ORDERS, STAGE_ORDERS = 20, 3  # orders for `sync` and `order`; fewer for a stage, which launches hundreds of kernels
LINE_CHARACTERS = 64  # of a source line in a table

# The faults that each tool finds.
TOOLS = {
    "race": "two accesses that nothing orders",
    "mem": "accesses outside of tensors, misaligned ones, writes to constant memory",
    "init": "reads of memory that no thread has written",
    "sync": "barriers that some threads miss, waits that never end, grids that are not resident",
    "order": "results that change with the order of warps, or with late writes",
}
# By fault: the tool that looks for it, and the rule that is broken.
RULES = {
    "race": ("race", "If one of two accesses to the same element is a write, something must order them: a barrier, "
                     "or a release and an acquire. Atomics need no order among themselves."),
    "out_of_bounds": ("mem", "An access must lie inside a tensor, or inside the block's shared memory."),
    "misaligned": ("mem", "The address of an access must be a multiple of its size."),
    "read_only": ("mem", "A kernel must not write to constant memory."),
    "uninitialised": ("init", "Memory must be written before it is read."),
    "divergent_barrier": ("sync", "All threads of a block must reach the same barrier."),
    "missing_lanes": ("sync", "All lanes in the mask of a warp operation must execute it."),
    "bad_barrier": ("sync", "A barrier needs a number from 0 to 15 and a count of whole warps."),
    "deadlock": ("sync", "A thread may wait only for what another thread can still do."),
    "lost_launch": ("sync", "Blocks that wait for each other must all be resident at the same time."),
    "not_resident": ("sync", "The blocks of a cooperative grid must all be resident at the same time."),
    "not_cooperative": ("sync", "A grid barrier needs a cooperative launch."),
    "budget": ("sync", "A kernel must end."),
    "trap": ("sync", "A kernel must not execute a trap."),
    "assertion": ("sync", "An assertion must hold."),
    "unsupported": ("sync", "The virtual GPU cannot execute this instruction."),
    "differs": ("order", "The result must be the same in every order of warps, however late a write arrives."),
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One access, or one group of waiting threads.

    who     in words, such as "block 1, thread 9";  block (x, y, z), thread: the numbers; None for several threads
    does    in words, such as "writes"
    file, line, text  the source line; "", 0, "" if it is unknown. For a string or a cell, the reader's own line
    inside  (file, line, text) of inlined functions that this line calls, from the outside to the instruction
    calls   the same for the calls that lead to this line, the innermost first
    """

    who: str
    does: str
    file: str = ""
    line: int = 0
    text: str = ""
    block: tuple[int, int, int] | None = None
    thread: int | None = None
    inside: tuple[tuple[str, int, str], ...] = ()
    calls: tuple[tuple[str, int, str], ...] = ()

    @property
    def rows(self) -> list[list[str]]:
        """Rows of a table: the line with who and does, and below it the lines inside and the calls."""
        first = _line(self.file, self.line, self.text) if self.file else "(no line)"
        more = [f"  in {_line(*place)}" for place in self.inside]
        more += [f"  called from {_line(*place)}" for place in self.calls]
        return [[first, self.who, self.does], *([place, "", ""] for place in more)]


def _line(file: str, line: int, text: str) -> str:
    text = text if len(text) <= LINE_CHARACTERS else f"{text[: LINE_CHARACTERS - 4]} ..."
    return f"{file}:{line}  {text}".rstrip()


@dataclass(frozen=True, repr=False)
class Finding(Tabular):
    """A rule that a kernel breaks.

    tool     one of TOOLS;  fault: one of RULES;  rule: the sentence of RULES
    element  of memory, in words, such as "x[3]";  tensor, index (flat): its parts; None for other memory
    sides    who did what where: two for a race, one for another access, one per group of threads that waits
    said     the message of the virtual GPU, or how much a result differs
    seed     of the order of warps; None for the usual order
    """

    tool: str
    fault: str
    kernel: str
    sides: tuple[Side, ...]
    said: str
    element: str = ""
    tensor: str | None = None
    index: int | None = None
    seed: int | None = None

    @property
    def rule(self) -> str:
        return RULES[self.fault][1]

    header = ("line", "who", "does")

    @property
    def title(self) -> str:
        where = f", on {self.element}" if self.element else ""
        return f"{self.tool}: {self.fault.replace('_', ' ')} in {self.kernel}{where}.\n{self.rule}"

    @property
    def body(self) -> list[list[str]]:
        return [row for side in self.sides for row in side.rows] or [["(no line)", "", ""]]

    @property
    def caption(self) -> str:
        if self.tool == "order":
            return f"In the order of seed {self.seed}: {self.said}"
        if self.fault == "lost_launch":  # the sentences after the first say what the table does
            return self.said.partition(". ")[0]
        return "" if self.fault in _IN_TABLE else self.said


_IN_TABLE = ("race", "uninitialised", "read_only", "deadlock")  # faults whose table says everything


@dataclass(frozen=True)
class Ran:
    """One tool of a report. runs: how often it ran the kernel; stopped: a fault of another tool ended a run early."""

    tool: str
    runs: int
    found: bool
    stopped: bool = False


@dataclass(frozen=True, repr=False)
class Sanitized(Tabular):
    """The result of `sanitize`. clean: there are no findings."""

    what: str
    card: str
    tools: tuple[Ran, ...]
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        return not self.findings

    header = ("tool", "runs", "finds")

    @property
    def title(self) -> str:
        count = len(self.findings)
        found = "clean" if self.clean else "1 finding" if count == 1 else f"{count} findings"
        return f"{self.what}: {found} (virtual GPU: {self.card})"

    @property
    def body(self) -> list[list[str]]:
        return [[f"{ran.tool}: {TOOLS[ran.tool]}", str(ran.runs), self._found(ran)] for ran in self.tools]

    @staticmethod
    def _found(ran: Ran) -> str:
        return "a fault" if ran.found else "ended early" if ran.stopped else "nothing"

    @property
    def caption(self) -> str:
        if not any(ran.stopped for ran in self.tools):
            return ""
        return "ended early: the fault below ended the run before the tool was done. Mend it and run again."

    def __str__(self) -> str:
        return "\n\n".join([super().__str__(), *map(str, self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return super()._repr_html_() + "".join(finding._repr_html_() for finding in self.findings)


def sanitize(
    what: str | Kernel | Attempt | Verdict, tool: str | None = None, *, kernel: str | None = None, grid=None,
    block=None, args: Mapping[str, object] | Sequence | None = None, smem: int = 0, cooperative: bool = False,
    unwritten: Sequence[str] = (), against: str | None = None, card: str | None = None, model="tiny",
    csrc_dir: Path | None = None, orders: int | None = None, instructions: int | None = None,
) -> Sanitized:  # fmt: skip
    """Run a kernel or a stage with the checks of the virtual GPU, and report the rules that it breaks.

    what      the name of a stage, of "prompt", or of a kernel, as for `luce_edu.profile`: one token or prompt runs as a
              whole, and a kernel is checked with it; a string of CUDA C++, with `kernel`, and with a launch or
              `against`; a loaded Kernel, with a launch; the Verdict or Attempt of a %%kernel cell
    tool      one of TOOLS; None for all of them
    grid, block, smem, cooperative  the launch of a string or a Kernel, as for Kernel.launch
    args      of this launch: by the names of the parameters, or in their order. Tensors get their content back
    unwritten names of tensors in `args` that hold nothing before the launch, such as outputs; `init` checks them
    against   a reference of %%kernel, whose inputs, shapes and launch the string gets
    card      a name that `luce-edu cards` lists; None for LUCE_CARD, or else the laptop. A Kernel has its own card
    model     for a stage: a model, or a name that `load_model` takes
    csrc_dir  another source tree for a stage or a Kernel, such as one with a planted fault
    orders    how many orders of warps `sync` and `order` try; None for 20, and 3 for a stage
    instructions  that the warps of a launch may execute before it is stopped; None for 5 million, unlimited in a stage
    Raises ValueError with one line for unknown names, a source that does not compile and a launch that is refused.
    """
    if tool is not None and tool not in TOOLS:
        raise ValueError(f"unknown tool {tool!r}; expected one of {', '.join(TOOLS)}")
    if orders is not None:
        check_int("orders", orders, 1)
    if instructions is not None:
        check_int("instructions", instructions, 1)
    launch = {"grid": grid, "block": block, "args": args, "smem": smem, "cooperative": cooperative}
    with ExitStack() as stack:
        if isinstance(what, str) and against is not None:
            if kernel is None:
                raise ValueError("a source to sanitize needs kernel=, the name of one in it")
            what = Attempt(kernel, against, what, grid, block, str(smem))
        if isinstance(what, Verdict):
            what = what.attempt
        if isinstance(what, Attempt):
            subjects = _of_attempt(what, card)
        elif isinstance(what, Kernel):
            backend = HostBackend(csrc_dir=csrc_dir, card=what.card)
            subjects = [_of_launch(what, backend, names=None, unwritten=unwritten, **launch)]
        elif isinstance(what, str) and "__global__" in what:
            compiled = stack.enter_context(_compiled(what, kernel, block, HostBackend(card=card)))
            subjects = [_of_launch(*compiled, unwritten=unwritten, texts={SOURCE: what}, **launch)]
        elif isinstance(what, str):
            subjects = [_of_stage(what, card, model, csrc_dir)]
        else:
            raise ValueError(f"what: expected a name, CUDA C++, a Kernel or a %%kernel cell, got {type(what).__name__}")
        for subject in subjects:
            subject.backend.threads = 1  # so that a report repeats, also of a kernel whose result depends on the order
            if instructions is not None:
                subject.backend.instructions = instructions
        try:
            return _sanitize(subjects, [tool] if tool else list(TOOLS), orders or subjects[0].orders)
        finally:
            for subject in subjects:
                subject.begin()


# ---- Subjects: what a tool runs ----


@dataclass
class Subject:
    """A kernel or a stage that can run any number of times from the same memory.

    tensors    by name, all that it may change; `order` compares them
    begin      restores them;  launch: runs once;  unwritten: the tensors that hold nothing before a run
    texts      the reader's own sources, by the compiler's name for them
    shape      in words, if the kernel runs at several
    orders     that `sync` and `order` try
    """

    name: str
    backend: HostBackend
    tensors: Mapping[str, torch.Tensor]
    begin: Callable[[], None]
    launch: Callable[[], None]
    unwritten: Callable[[], Sequence[torch.Tensor]]
    texts: Mapping[str, str]
    shape: str = ""
    orders: int = ORDERS

    def run(self, *, seed: int | None = None, hostile: bool = False, races: bool = False, init: bool = False,
            guard: tuple[str, int] | None = None) -> dict[str, torch.Tensor]:  # fmt: skip
        """Run once; return copies of the tensors. Raises KernelError and LaunchError."""
        backend = self.backend
        self.begin()
        marks = Marks(self.unwritten())
        if guard:
            marks.guard(self.tensors[guard[0]], guard[1])
        backend.seed, backend.hostile, backend.races = seed, hostile, races
        backend.marks = marks if init or guard else None
        try:
            self.launch()
        finally:
            backend.seed, backend.hostile, backend.races, backend.marks = None, False, False, None
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    def side(self, act: Act) -> Side:
        """An act with the text of its lines. Of the reader's own lines the innermost comes first."""
        lines = [(file, line, self._text(file, line)) for file, line in act.places] or [("", 0, "")]
        at = next((i for i, (file, *_) in enumerate(lines) if file in self.texts), 0)
        inside, calls = tuple(reversed(lines[:at])), tuple(lines[at + 1 :])
        return Side(act.who, act.does, *lines[at], act.block, act.thread, inside, calls)

    def _text(self, file: str, line: int) -> str:
        text = self.texts.get(file, "")
        if file not in self.texts:
            with suppress(OSError):  # CUDA's own headers are elsewhere
                text = (self.backend.csrc_dir / file).read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def _of_stage(what: str, card: str | None, model, csrc_dir: Path | None) -> Subject:
    from luce_edu.models import load_model
    from luce_edu.stages import KERNEL_STAGES, decoder

    run, kernel = _find(what)
    model = load_model(model) if isinstance(model, str) else model
    backend = HostBackend(csrc_dir=csrc_dir, card=card)
    stage = KERNEL_STAGES[0] if run == PROMPT else run  # all of them read a prompt alike
    dec = decoder(stage, model, max_seq_len=2 * TOKENS, backend=backend)
    prompt = np.random.default_rng(0).integers(1, model.config.vocab_size, size=TOKENS).tolist()

    def begin() -> None:
        dec.reset()
        if run != PROMPT:  # noise for the tokens before, as a kernel with a fault might not decode them
            generator = torch.Generator().manual_seed(0)
            for tensor_name in DecodeState.TENSORS:
                getattr(dec.state, tensor_name).normal_(std=0.5, generator=generator)
            dec.state.position = POSITION
        dec.poison()

    def launch() -> None:
        if run == PROMPT:
            dec.prefill(prompt)
        else:
            dec.step(prompt[0])

    if run == PROMPT:
        with suppress(KernelError):  # a tool reports it later
            launch()  # allocates the buffers of a prompt
    kinds = dec.named_tensors()
    tensors = kinds["state"] | kinds["activations"]
    what = f"{run}.{kernel}" if kernel else run
    name = f"{what}, a prompt of {TOKENS} tokens" if run == PROMPT else f"{what}, a token at position {POSITION}"
    return Subject(f"{name} of {model.name}", backend, tensors, begin, launch, dec.unwritten, {}, orders=STAGE_ORDERS)


def _find(what: str) -> tuple[str, str | None]:
    if what in SPECS:
        raise ValueError(f"{what} is what a kernel is checked against: %%kernel NAME --against {what} --sanitize")
    if what == "eager":
        raise ValueError("eager runs PyTorch's kernels, which the virtual GPU does not run; name another stage")
    return find_profiled(what)


def _of_attempt(attempt: Attempt, card: str | None) -> list[Subject]:
    """The kernel of a cell on new inputs, at each shape of its spec."""
    spec = find_spec(attempt.against)
    generator = torch.Generator().manual_seed(attempt.seed or 0)
    subjects = []
    for shape in spec.shapes:
        inputs = spec.make(shape, lambda *size: torch.randn(size, generator=generator))
        outputs = {name: torch.empty(size) for name, size in spec.outputs(shape).items()}
        backend = HostBackend(card=card, instructions=KERNEL_INSTRUCTIONS)
        launch = prepare(attempt, shape, inputs | outputs, backend)
        named = {name: value for name, value in (inputs | outputs).items() if isinstance(value, torch.Tensor)}
        subject = _with_tensors(attempt.kernel, backend, named, launch, list(outputs), {CELL: "\n" + attempt.text})
        subject.shape = ", ".join(f"{size_of} {size}" for size_of, size in shape.items())
        subjects.append(subject)
    return subjects


def _with_tensors(
    name: str, backend: HostBackend, named: Mapping[str, torch.Tensor], launch: Callable[[], None],
    unwritten: Sequence[str], texts: Mapping[str, str],
) -> Subject:  # fmt: skip
    before = {key: tensor.clone() for key, tensor in named.items()}
    backend.name_tensors(named)

    def begin() -> None:
        for key, tensor in named.items():
            tensor.copy_(before[key])

    return Subject(name, backend, named, begin, launch, lambda: [named[key] for key in unwritten], texts)


def _of_launch(
    kernel: Kernel, backend: HostBackend, names: Sequence[str] | None, unwritten: Sequence[str], *, grid, block, args,
    smem: int, cooperative: bool, texts: Mapping[str, str] | None = None,
) -> Subject:  # fmt: skip
    """One launch. names: of the parameters in the source; None if they are unknown."""
    if grid is None or block is None or args is None:
        raise ValueError(f"{kernel.name}: a kernel to sanitize needs grid, block and args")
    if isinstance(args, Mapping):
        if names is not None:
            if set(names) != set(args):
                raise ValueError(f"{kernel.name}: args: expected {', '.join(names) or 'none'}, got {', '.join(args)}")
            args = {name: args[name] for name in names}
    else:
        if names is None or len(names) != len(args):  # the launch reports a wrong number
            names = [f"argument {i}" for i in range(len(args))]
        args = dict(zip(names, args, strict=True))
    named = {name: value for name, value in args.items() if isinstance(value, torch.Tensor)}
    if missing := [name for name in unwritten if name not in named]:
        raise ValueError(f"{kernel.name}: unwritten: no tensor {', '.join(missing)}; there are {', '.join(named)}")
    backend.instructions = KERNEL_INSTRUCTIONS
    values = list(args.values())

    def launch() -> None:
        backend.launch(kernel, grid, block, smem, values, cooperative=cooperative)

    return _with_tensors(kernel.name, backend, named, launch, unwritten, texts or {})


@contextmanager
def _compiled(
    text: str, kernel: str | None, block, backend: HostBackend
) -> Iterator[tuple[Kernel, HostBackend, list[str]]]:
    """Compile a kernel of a text, which may include files of csrc/. Gives it with the names of its parameters."""
    if kernel is None:
        raise ValueError("a source to sanitize needs kernel=, the name of one in it")
    plain = code(text)
    found = re.search(rf"\b__global__\b[^;{{}}]*?\b{re.escape(kernel)}\s*\(([^)]*)\)", plain)
    if not found:
        there = re.findall(r"\b__global__\b[^;{}()]*?\b(\w+)\s*\(", plain)
        raise ValueError(f"no kernel named {kernel!r} in the source; there are {', '.join(there) or 'none'}")
    names = [parameter.replace("*", " ").split()[-1] for parameter in filter(str.strip, found[1].split(","))]
    if not re.search(r'extern\s*"C"\s*$', text[: found.start()]):  # keeps the compiler from changing the name
        text = f'{text[: found.start()]}extern "C" {text[found.start() :]}'
    threads = np.prod(block) if block is not None else 256
    with planted() as tree:
        (tree / SOURCE).write_text(text, encoding="utf-8")
        backend.csrc_dir = tree
        try:
            module = backend.compile(SOURCE, [kernel], cell_defines(int(threads)))
        except CompileError as error:
            said = one_line(first_error(error.log or str(error), text))
            raise ValueError(f"{kernel} does not compile. {said}") from None
        yield module[kernel], backend, names


# ---- The tools ----


def _sanitize(subjects: Sequence[Subject], tools: Sequence[str], orders: int) -> Sanitized:
    """Run each tool on each subject until it finds a fault. A fault that several tools find is reported once."""
    findings: list[Finding] = []
    known: dict[tuple, Finding | dict] = {}  # results of runs, which several tools may need
    ran, stopped = dict.fromkeys(tools, 0), set()
    for tool in tools:
        cases = [(i, how) for i in range(len(subjects)) for how in _runs(tool, max(orders // len(subjects), 1))]
        for i, how in cases:
            ran[tool] += 1
            if (key := (i, *how.items())) not in known:
                known[key] = _run(subjects[i], how)
            found = known[key]
            if "hostile" in how and not isinstance(found, Finding):
                found = _difference(subjects[i], how, known[i,], found)
            if not isinstance(found, Finding):
                continue
            if found.tool != tool:
                stopped.add(tool)
            if not any(_is_same(found, other) for other in findings):
                findings.append(found)
            break
    findings.sort(key=lambda finding: list(TOOLS).index(finding.tool))
    found_by = {finding.tool for finding in findings}
    rows = tuple(Ran(tool, ran[tool], tool in found_by, tool in stopped - found_by) for tool in tools)
    return Sanitized(subjects[0].name, subjects[0].backend.card.name, rows, tuple(findings))


def _runs(tool: str, orders: int) -> Sequence[dict]:
    """The runs of a tool, as options of Subject.run. `order` compares each with the first."""
    return {
        "race": [{"seed": seed, "races": True} for seed in RACE_ORDERS],
        "mem": [{}],
        "init": [{"init": True}],
        "sync": [{}, *({"seed": seed} for seed in range(orders))],
        "order": [{}, *({"seed": seed, "hostile": True} for seed in range(orders))],
    }[tool]


def _is_same(one: Finding, other: Finding) -> bool:
    return (one.fault, {side.line for side in one.sides}) == (other.fault, {side.line for side in other.sides})


def _run(subject: Subject, how: Mapping) -> Finding | dict[str, torch.Tensor]:
    try:
        return subject.run(**how)
    except (KernelError, LaunchError) as error:
        if error.fault not in RULES:  # wrong arguments, or a launch that no card accepts
            raise
        scene = getattr(error, "scene", None) or Scene(subject.name, ())
        tool = "order" if "hostile" in how else RULES[error.fault][0]
        said = str(error).removeprefix(f"{scene.kernel}: ")
        return _finding(subject, tool, error.fault, how, scene, said)


def _finding(subject: Subject, tool: str, fault: str, how: Mapping, scene: Scene, said: str, **memory) -> Finding:
    where = memory or {"element": scene.element, "tensor": scene.tensor, "index": scene.index}
    return Finding(
        tool, fault, scene.kernel, tuple(map(subject.side, scene.acts)),
        f"{subject.shape}: {said}" if subject.shape else said, seed=how.get("seed"), **where,
    )  # fmt: skip


def _difference(subject: Subject, how: Mapping, usual: dict, left: dict) -> Finding | None:
    """The first element that a hostile order changes, with the lines of a race in the same order, or of its write."""
    for name, expected in usual.items():
        size = expected.element_size()
        bits = [tensor.contiguous().view(torch.uint8).view(-1, size) for tensor in (expected, left[name])]
        changed = (bits[0] != bits[1]).any(1).nonzero().flatten()
        if not len(changed):
            continue
        index = int(changed[0])
        scene = Scene(subject.name, ())
        for more in ({"races": True}, {"guard": (name, index)}):
            try:
                subject.run(**how, **more)
            except KernelError as error:
                if error.scene and error.fault in ("race", "read_only"):
                    scene = error.scene
                    break
        one, other = (float(tensor.flatten()[index]) for tensor in (expected, left[name]))
        said = (
            f"{name}[{index}] is {other:.6g}, and {one:.6g} in the usual order; {len(changed):,} of "
            f"{expected.numel():,} elements differ. " + _EXPLAINED["races" in more if scene.acts else None]
        )
        return _finding(subject, "order", "differs", how, scene, said, element=f"{name}[{index}]", tensor=name,
                        index=index)  # fmt: skip
    return None


# What the lines of a difference show: a race, the first write of the element, or nothing.
_EXPLAINED = {
    True: "The lines show a race in the same order.",
    False: "There is no race. The line shows the first write of the element.",
    None: "There is no race.",
}
