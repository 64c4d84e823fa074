"""The laboratory: which rule of the GPU a kernel breaks, in which two lines and threads, at which element.

    sanitize("megakernel")                                              one token of a stage, on tiny
    sanitize("per_layer.delta_rule", "race")                            the token in which the kernel runs, one tool
    sanitize(source, kernel="barrier", grid=8, block=64, args={"x": x}) CUDA C++ in a string
    sanitize(source, kernel="mine", against="torch.add")                the same on the inputs of a %%kernel cell
    sanitize(verdict)                                                   a %%kernel cell, kept with --as

The virtual GPU does the work (luce_edu/machine). A tool decides in which orders it runs a kernel and what it looks for.
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

SOURCE = "source"  # what the compiler calls a text that is checked against nothing
POSITION, TOKENS = 40, 65  # of a stage's token, beyond one split of the cache; of a prompt, beyond one chunk
KERNEL_INSTRUCTIONS = 5_000_000  # of the warps of a launch, for a kernel that is no stage's
RACE_ORDERS = (None, 0, 1)  # None: blocks in a row, each warp as far as it can
ORDERS, STAGE_ORDERS = 20, 3  # that sync and order look at beside; a stage has hundreds of kernels or phases
LINE_CHARACTERS = 80  # of a source line that are shown

# What each tool looks for.
TOOLS = {
    "race": "two accesses that nothing orders",
    "mem": "accesses outside of tensors, misaligned ones, writes to constant memory",
    "init": "reads of memory that nobody has written",
    "sync": "barriers that not all come to, waits that never end, grids that are not resident",
    "order": "results that change with the order of warps, or with late memory",
}
# By what the virtual GPU finds: the tool, and the rule that is broken.
RULES = {
    "race": ("race", "Two accesses to one element, of which one is a write, must be ordered: by a barrier between "
                     "them, or by a release and an acquire. Atomics may meet."),
    "out_of_bounds": ("mem", "An access must lie inside a tensor, or inside the block's shared memory."),
    "misaligned": ("mem", "The address of an access must be a multiple of its size."),
    "read_only": ("mem", "A kernel must not write to constant memory."),
    "uninitialised": ("init", "Memory must be written before it is read."),
    "divergent_barrier": ("sync", "All threads of a block must come to the same barrier."),
    "missing_lanes": ("sync", "All lanes that an operation of a warp names must come to it."),
    "bad_barrier": ("sync", "A barrier has a number from 0 to 15 and waits for whole warps."),
    "deadlock": ("sync", "What a thread waits for must come from a thread that can still go on."),
    "lost_launch": ("sync", "Blocks that wait for each other must all be resident: a grid that waits for itself must "
                            "not be larger than the card holds."),
    "not_resident": ("sync", "A cooperative grid must not be larger than the card holds."),
    "not_cooperative": ("sync", "A grid that waits for itself needs a cooperative launch."),
    "budget": ("sync", "A kernel must end."),
    "trap": ("sync", "A kernel must not meet its own trap."),
    "assertion": ("sync", "An assertion must hold."),
    "unsupported": ("sync", "The virtual GPU must know what it executes."),
    "differs": ("order", "The result must be the same in every order of warps, however late a write arrives."),
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One of the accesses or waits that a finding is about.

    who     in words;  block (x, y, z) and thread, in a row: the same as numbers, None where there are several
    does    in words, such as "writes"
    file, line, text  where, and what stands there; "", 0, "" where nobody knows
    calls   the same of the calls that were inlined, the innermost first
    """

    who: str
    does: str
    file: str = ""
    line: int = 0
    text: str = ""
    block: tuple[int, int, int] | None = None
    thread: int | None = None
    calls: tuple[tuple[str, int, str], ...] = ()

    @property
    def rows(self) -> list[list[str]]:
        """For a table: the line, who and does; below it the calls."""
        first = [f"{self.file}:{self.line}  {_short(self.text)}" if self.file else "(no line)", self.who, self.does]
        return [first, *([f"  called from {file}:{line}  {_short(text)}", "", ""] for file, line, text in self.calls)]


def _short(line: str) -> str:
    return line if len(line) <= LINE_CHARACTERS else f"{line[: LINE_CHARACTERS - 4]} ..."


@dataclass(frozen=True, repr=False)
class Finding(Tabular):
    """A rule that a kernel breaks.

    tool     that found it, one of TOOLS;  fault: what it is, one of RULES;  rule: in a sentence
    element  in words, such as "x[3]";  tensor, index (flat): the same apart, where it is one of a tensor
    sides    who did what where: two for a race, one for an access, one for each group of threads that waits
    said     the virtual GPU's own words, or by how much a result differs
    seed     of the order in which it came up; None for the usual order
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
        return f"{self.tool}: {self.fault.replace('_', ' ')} in {self.kernel}{where}\n{self.rule}"

    @property
    def body(self) -> list[list[str]]:
        return [row for side in self.sides for row in side.rows] or [["(no line)", "", ""]]

    @property
    def caption(self) -> str:
        if self.fault in _TOLD and self.tool != "order":
            return ""
        return self.said if self.seed is None else f"In the order of seed {self.seed}: {self.said}"


_TOLD = ("race", "uninitialised", "read_only", "deadlock")  # of which the table says all that is to say


@dataclass(frozen=True)
class Ran:
    """One tool of a report. runs: of the kernel or stage; stopped: a fault of another tool ended them early."""

    tool: str
    runs: int
    found: bool
    stopped: bool = False


@dataclass(frozen=True, repr=False)
class Sanitized(Tabular):
    """What `sanitize` found. `findings` is empty, and `clean` True, where nothing was."""

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
        return "ended early: the fault below came first, and hides what comes after it. Mend it and run again."

    def __str__(self) -> str:
        return "\n\n".join([super().__str__(), *map(str, self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return super()._repr_html_() + "".join(finding._repr_html_() for finding in self.findings)

    def __rich__(self):
        from rich.console import Group

        return Group(super().__rich__(), *(part for finding in self.findings for part in ("", finding)))


def sanitize(
    what: str | Kernel | Attempt | Verdict, tool: str | None = None, *, kernel: str | None = None, grid=None,
    block=None, args: Mapping[str, object] | Sequence | None = None, smem: int = 0, cooperative: bool = False,
    unwritten: Sequence[str] = (), against: str | None = None, card: str | None = None, model="tiny",
    csrc_dir: Path | None = None, orders: int | None = None, instructions: int | None = None,
) -> Sanitized:  # fmt: skip
    """Run a kernel or a stage under the virtual GPU's checks, and report the rules that it breaks.

    what      a stage made of kernels, for one token; "prompt"; a kernel of either, for the token or prompt in which it
              runs, named as for `luce_edu.profile`; CUDA C++ as a string, with `kernel` and a launch or `against`; a
              Kernel that is loaded, with a launch; a %%kernel cell's Verdict or Attempt
    tool      one of TOOLS; None: all of them
    grid, block, smem, cooperative  the launch of a string or Kernel, as Kernel.launch takes them
    args      of that launch: by name, as the source names them, or in order. The tensors are as they were afterwards
    unwritten names of tensors among them that hold nothing at first, for `init`: outputs
    against   the name of a spec, whose inputs, shapes and launch a string gets, as a %%kernel cell would
    card      a name that `luce-edu cards` lists; None: LUCE_CARD, or the laptop. A Kernel has its own
    model     of a stage: a name that `load_model` takes, or a model
    csrc_dir  another source tree for a stage or Kernel, such as one with a planted fault
    orders    that `sync` and `order` try beside the usual one; None: 20, and 3 of a stage
    instructions  that the warps of a launch may execute; None: 5 million, and no limit for a stage
    Raises ValueError, a line, for what is not there, a text that does not compile and a launch that is refused.
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
            if instructions is not None:
                subject.backend.instructions = instructions
        try:
            return _sanitize(subjects, [tool] if tool else list(TOOLS), orders or subjects[0].orders)
        finally:
            for subject in subjects:
                subject.begin()


# ---- What can be run again and again ----


@dataclass
class Subject:
    """A kernel or stage that can be run again and again from the same memory.

    tensors    all that it may change, by name: what `order` compares
    begin      puts them back;  launch: one run;  unwritten: what holds nothing when it starts
    texts      sources that are in no folder, by the compiler's name for them
    """

    name: str
    backend: HostBackend
    tensors: Mapping[str, torch.Tensor]
    begin: Callable[[], None]
    launch: Callable[[], None]
    unwritten: Callable[[], Sequence[torch.Tensor]]
    texts: Mapping[str, str]
    shape: str = ""  # in words, where a kernel runs at several
    orders: int = ORDERS

    def run(self, *, seed: int | None = None, hostile: bool = False, races: bool = False, init: bool = False,
            guard: tuple[str, int] | None = None) -> dict[str, torch.Tensor]:  # fmt: skip
        """One run; what it left. Raises KernelError and LaunchError."""
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
        """An act with the text of its lines."""
        lines = [(file, line, self._text(file, line)) for file, line in act.places]
        first, *calls = lines or [("", 0, "")]
        return Side(act.who, act.does, *first, act.block, act.thread, tuple(calls))

    def _text(self, file: str, line: int) -> str:
        text = self.texts.get(file, "")
        if file not in self.texts:
            with suppress(OSError):  # one of CUDA's own headers is not there
                text = (self.backend.csrc_dir / file).read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def _of_stage(what: str, card: str | None, model, csrc_dir: Path | None) -> Subject:
    from luce_edu.models import load_model
    from luce_edu.stages import STAGES, decoder

    run, kernel = _find(what)
    model = load_model(model) if isinstance(model, str) else model
    backend = HostBackend(csrc_dir=csrc_dir, card=card)
    dec = decoder(STAGES[-1] if run == PROMPT else run, model, max_seq_len=2 * TOKENS, backend=backend)
    prompt = np.random.default_rng(0).integers(1, model.config.vocab_size, size=TOKENS).tolist()

    def begin() -> None:
        dec.reset()
        if run != PROMPT:  # as if so many tokens had been decoded, without a kernel that may be at fault
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
        with suppress(KernelError):  # which shows again
            launch()  # the first prompt of its length makes the buffers
    kinds = dec.named_tensors()
    tensors = kinds["state"] | kinds["activations"]
    name = f"{what}, a prompt of {TOKENS} tokens" if run == PROMPT else f"{what}, a token at position {POSITION}"
    return Subject(f"{name} of {model.name}", backend, tensors, begin, launch, dec.unwritten, {}, orders=STAGE_ORDERS)


def _find(what: str) -> tuple[str, str | None]:
    if what in SPECS:
        raise ValueError(f"{what} is what a kernel is checked against: %%kernel NAME --against {what} --sanitize")
    if what == "eager":
        raise ValueError("eager runs PyTorch's own kernels, which the virtual GPU does not run; name another stage")
    return find_profiled(what)


def _of_attempt(attempt: Attempt, card: str | None) -> list[Subject]:
    """A cell's kernel on fresh inputs, at each shape of its spec."""
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
    """One launch. names: of the parameters, as the source has them; None where that is not known."""
    if grid is None or block is None or args is None:
        raise ValueError(f"{kernel.name}: a kernel to sanitize needs grid, block and args")
    if isinstance(args, Mapping):
        if names is not None:
            if set(names) != set(args):
                raise ValueError(f"{kernel.name}: args: expected {', '.join(names) or 'none'}, got {', '.join(args)}")
            args = {name: args[name] for name in names}
    else:
        if names is None or len(names) != len(args):  # a launch says how many there must be
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
    """A kernel of a text, compiled beside csrc/, and the names of its parameters."""
    if kernel is None:
        raise ValueError("a source to sanitize needs kernel=, the name of one in it")
    plain = code(text)
    found = re.search(rf"\b__global__\b[^;{{}}]*?\b{re.escape(kernel)}\s*\(([^)]*)\)", plain)
    if not found:
        there = re.findall(r"\b__global__\b[^;{}()]*?\b(\w+)\s*\(", plain)
        raise ValueError(f"no kernel named {kernel!r} in the source; there are {', '.join(there) or 'none'}")
    names = [parameter.replace("*", " ").split()[-1] for parameter in filter(str.strip, found[1].split(","))]
    if not re.search(r'extern\s*"C"\s*$', text[: found.start()]):  # without which a compiler changes the name
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
    """Each tool on each subject, until it finds something. A fault that several tools meet is told once."""
    findings: list[Finding] = []
    known: dict[tuple, Finding | dict] = {}  # what became of a run that another tool has had already
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
    """In which orders a tool runs something: options of Subject.run. `order` compares with the usual one."""
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
        if error.fault not in RULES:  # a launch that asks for what no card has, or wrong arguments
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
    """The first element that a hostile order has changed; the race that explains it, or else who writes the element."""
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


# What the lines of a difference are.
_EXPLAINED = {
    True: "The lines are those of a race in the same order.",
    False: "No two accesses race. The line is where the element is first written.",
    None: "No two accesses race.",
}
