"""Step through one warp of a small kernel, one PTX instruction after another, with the registers of its 32 lanes.

    steps = step(kernel, grid, block, args)     run the kernel, and record what one of its warps did
    steps                                       in a notebook: a view to step forward and back, or a table
    steps[3].writes["%f1"]                      the result of the fourth instruction in each lane
"""

from __future__ import annotations

import ctypes
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from luce_edu.errors import KernelError, LaunchError, check_int
from luce_edu.machine import ptx
from luce_edu.machine.core import OrderText, Report, Trace, core
from luce_edu.machine.kernels import INSTRUCTIONS, Kernel, Prepared, launch_texts
from luce_edu.machine.report import words

MOST_STEPS = 2000
WARP = 32
_SHOWN_STEPS = 40  # in the table, which is shown if there are no widgets
_TYPES = {"pred": None, "f32": "f4", "f64": "f8"}


@dataclass(frozen=True)
class Step:
    """One instruction of the warp.

    number    counted from 0
    text      the line of PTX
    place     'file:line' of the source, or ''
    lanes     the mask of active lanes
    reads, writes  by register: its value in each of the 32 lanes, before and after (a predicate: bools)
    touched   for a load, store or atomic: (lane, name of the tensor or space, element in units of the access)
    """

    number: int
    text: str
    place: str
    lanes: int
    reads: Mapping[str, np.ndarray]
    writes: Mapping[str, np.ndarray]
    touched: Sequence[tuple[int, str, int]]

    @property
    def active(self) -> int:
        """Number of active lanes."""
        return self.lanes.bit_count()


def step(
    kernel: Kernel, grid, block, args: Sequence, *, at_block: int = 0, warp: int = 0, most: int = MOST_STEPS,
    seed: int = 0, **options,
) -> Steps:  # fmt: skip
    """Run a launch in the order that `seed` draws, and record what one warp does at each instruction.

    at_block, warp  the block's number, counted along the grid, and the warp's number in the block
    most            the most instructions to record, after which the launch is stopped; each takes some kilobytes
    options         those of a launch, such as smem
    Raises LaunchError for a block or warp that does not exist, and the errors of a launch.
    """
    launch = Prepared(kernel, grid, block, args, **options)
    blocks, threads = (size[0] * size[1] * size[2] for size in (launch.grid, launch.block))
    for what, number, count in (("block", at_block, blocks), ("warp", warp, -(-threads // WARP))):
        if type(number) is not int or not 0 <= number < count:
            raise LaunchError(f"{kernel.name}: expected {what} from 0 to {count - 1}, got {number!r}")
    check_int(f"{kernel.name}: most", most, 1, 100_000, LaunchError)
    program = kernel.program
    at, mask = np.zeros(most, np.int32), np.zeros(most, np.uint32)
    registers = np.zeros((most + 1, program.arena_bytes), np.uint8)
    trace = Trace(at_block, warp, None, None, most, 0, at.ctypes.data, mask.ctypes.data, registers.ctypes.data)
    texts, report = launch_texts([launch]), Report()
    order = OrderText(1, 1, seed % 2**64, INSTRUCTIONS, False, False, ctypes.addressof(trace))
    core().luce_run(texts, 1, ctypes.byref(order), ctypes.byref(report))
    if report.fault:
        raise KernelError(words(report, [launch]))
    return Steps(launch, at_block, warp, at[: trace.steps], mask[: trace.steps], registers[: trace.steps + 1])


class Steps:
    """The record of a warp, with a Step for each PTX instruction; see `step`."""

    def __init__(self, launch: Prepared, block: int, warp: int, at, mask, registers):
        self.kernel, self.block, self.warp = launch.kernel, block, warp
        self._launch, self._at, self._mask, self._registers = launch, at, mask, registers
        program = launch.kernel.program
        # A PTX instruction may be several of the core's. Those that the assembler added belong to none.
        self._firsts = [
            i for i in range(len(at))
            if program.sources[at[i]] >= 0 and (i == 0 or program.sources[at[i]] != program.sources[at[i - 1]]
                                                or at[i] <= at[i - 1])
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, number: int) -> Step:
        number = range(len(self))[number]
        first = self._firsts[number]
        after = self._firsts[number + 1] if number + 1 < len(self) else len(self._at)
        statement = self.kernel.program.statement(int(self._at[first]))
        reads, writes = _registers_of(statement)
        slot = int(self._at[first])
        place = "" if statement.loc is None else f"{statement.loc.file}:{statement.loc.line}"
        return Step(
            number, self.kernel.text(statement), place, int(self._mask[first]),
            {name: value for name in reads if (value := self._value(name, slot, first)) is not None},
            {name: value for name in writes if (value := self._value(name, slot, after, written=True)) is not None},
            self._touched(statement, slot, first),
        )  # fmt: skip

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    @cached_property
    def _places(self) -> dict[str, list[tuple[str, int, int, int]]]:
        places: dict[str, list] = {}
        for _, name, kind, offset, first, last in self.kernel.program.registers:
            places.setdefault(name, []).append((kind, offset, first, last))
        return places

    def _value(self, name: str, slot: int, moment: int, written: bool = False) -> np.ndarray | None:
        """Return a register's value in each lane before the core's instruction `moment`; None if it has no place."""
        for kind, offset, first, last in self._places.get(name, ()):
            if not first <= slot <= last:
                continue
            arena = self._registers[moment]
            if kind == "pred":
                bits = int(arena[offset : offset + 4].view("u4")[0])
                return np.array([bool(bits >> lane & 1) for lane in range(WARP)])
            size = 8 if kind.endswith("64") else 4
            values = arena[offset : offset + WARP * size].view(_TYPES.get(kind) or ("u4" if size == 4 else "u8"))
            return values.copy()
        return None

    def _touched(self, statement: ptx.Instruction, slot: int, moment: int) -> list[tuple[int, str, int]]:
        address = next((o for o in statement.operands if isinstance(o, ptx.Address)), None)
        register = getattr(address, "base", None)
        if statement.opcode not in ("ld", "st", "atom", "red") or not isinstance(register, ptx.Reg):
            return []
        base = self._value(register.name, slot, moment)
        if base is None:
            return []
        size = next((int(m[1:]) // 8 for m in reversed(statement.modifiers) if m[1:].isdigit() and m[0] in "bufs"), 4)
        touched = []
        for lane in range(WARP):
            if int(self._mask[moment]) >> lane & 1:
                touched.append((lane, *self._named(statement, int(base[lane]) + address.offset, size)))
        return touched

    def _named(self, statement: ptx.Instruction, address: int, size: int) -> tuple[str, int]:
        space = next((m for m in statement.modifiers if m in ("shared", "local", "param", "const")), None)
        if space:
            return space, address // size
        tensors = self._launch.tensors
        for (begin, end), name in zip(tensors.bounds, tensors.names, strict=True):
            if begin <= address < end:
                return name, (address - begin) // size
        return "?", address

    # ---- Showing ----

    def __repr__(self) -> str:
        shown = [self[number] for number in range(min(len(self), _SHOWN_STEPS))]
        rows = [f"{s.number:4d}  {s.active:2d}  {s.place:<24} {s.text}" for s in shown]
        rest = f"\n... and {len(self) - _SHOWN_STEPS} more" if len(self) > _SHOWN_STEPS else ""
        return "\n".join([self.title, "step  on  source                   instruction", *rows]) + rest

    @property
    def title(self) -> str:
        return f"{self.kernel.name}: block {self.block}, warp {self.warp}, {len(self)} instructions"

    def _repr_html_(self) -> str:
        """Return a table of the first instructions, for viewers without widgets."""
        cells = "".join(
            f"<tr><td>{s.number}</td><td>{s.active}</td><td><code>{html.escape(s.place)}</code></td>"
            f"<td style='text-align:left'><code>{html.escape(s.text)}</code></td>"
            f"<td style='text-align:left'>{html.escape(_short(s))}</td></tr>"
            for s in (self[number] for number in range(min(len(self), _SHOWN_STEPS)))
        )
        rest = f"<p>… and {len(self) - _SHOWN_STEPS} more</p>" if len(self) > _SHOWN_STEPS else ""
        return (
            f"<p>{html.escape(self.title)}</p><table><thead><tr><th>step</th><th>lanes on</th><th>source</th>"
            f"<th>instruction</th><th>gives lanes 0 to 3</th></tr></thead><tbody>{cells}</tbody></table>{rest}"
        )

    def page(self, number: int) -> str:
        """Return one step as HTML: the instruction, and its registers and memory for each lane."""
        s = self[number]
        touched = {lane: f"{name}[{index}]" for lane, name, index in s.touched}
        columns = [(f"{name} before", v) for name, v in s.reads.items()]
        columns += [(f"{name} after", v) for name, v in s.writes.items()]
        head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns) + ("<th>memory</th>" if touched else "")
        rows = []
        for lane in range(WARP):
            on = s.lanes >> lane & 1
            values = "".join(f"<td>{_spelled(v[lane])}</td>" for _, v in columns)
            memory = f"<td>{html.escape(touched.get(lane, ''))}</td>" if touched else ""
            rows.append(f"<tr style='opacity: {1 if on else 0.35}'><td>{lane}</td>{values}{memory}</tr>")
        return (
            f"<p><code>{html.escape(s.text)}</code><br>{html.escape(s.place)}, {s.active} lanes on</p>"
            f"<table><thead><tr><th>lane</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )

    def lines(self) -> list[int]:
        """Return the numbers of the steps at which another source line begins."""
        places = [s.place for s in self]
        return [n for n, place in enumerate(places) if place and (n == 0 or place != places[n - 1])]

    def view(self):
        """Make widgets to step forward and back, by instruction and by source line. ImportError without ipywidgets."""
        import ipywidgets as widgets

        slider = widgets.IntSlider(0, 0, max(len(self) - 1, 0), description="step")
        shown = widgets.HTML(self.page(0) if len(self) else "")
        starts = self.lines()
        moves = {
            "◀ line": lambda n: max((s for s in starts if s < n), default=0),
            "◀": lambda n: n - 1,
            "▶": lambda n: n + 1,
            "line ▶": lambda n: min((s for s in starts if s > n), default=len(self) - 1),
        }
        buttons = []
        for label, move in moves.items():
            button = widgets.Button(description=label, layout=widgets.Layout(width="5em"))
            button.on_click(lambda _, move=move: setattr(slider, "value", min(max(move(slider.value), 0), slider.max)))
            buttons.append(button)
        slider.observe(lambda change: setattr(shown, "value", self.page(change["new"])), "value")
        title = widgets.HTML(f"<p>{html.escape(self.title)}</p>")
        return widgets.VBox([title, widgets.HBox([*buttons, slider]), shown])

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        try:
            view = self.view()
        except ImportError:
            display(HTML(self._repr_html_()))
            return
        # A viewer that cannot run widgets shows the table instead.
        table = {"text/plain": repr(self), "text/html": self._repr_html_()}
        display((view._repr_mimebundle_() or {}) | table, raw=True)


def _short(s: Step) -> str:
    return "; ".join(f"{name} = {', '.join(_spelled(v) for v in values[:4])}, …" for name, values in s.writes.items())


def _spelled(value) -> str:
    if isinstance(value, np.floating):
        return f"{value:.6g}"
    number = int(value)
    return str(value) if isinstance(value, np.bool_) else str(number) if number < 2**20 else hex(number)


_STORES = ("st", "red", "bar", "barrier", "bra", "ret", "exit", "call", "fence", "membar", "prefetch", "brx", "trap")


def _registers_of(statement: ptx.Instruction) -> tuple[list[str], list[str]]:
    """Return the names of the registers that an instruction reads, and of those that it writes."""
    found = [list(_names(operand)) for operand in statement.operands]
    written = [] if statement.opcode in _STORES or not found else found[0]
    read = [name for names in (found if written == [] else found[1:]) for name in names]
    if statement.predicate:
        read.insert(0, statement.predicate)
    return list(dict.fromkeys(read)), written


def _names(operand):
    if isinstance(operand, ptx.Reg):
        yield operand.name
    elif isinstance(operand, ptx.Address) and isinstance(operand.base, ptx.Reg):
        yield operand.base.name
    elif isinstance(operand, ptx.Vector):
        for item in operand.items:
            yield from _names(item)
    elif isinstance(operand, ptx.Pair):
        yield from _names(operand.first)
        yield from _names(operand.second)
    elif isinstance(operand, ptx.Not):
        yield operand.reg if isinstance(operand.reg, str) else operand.reg.name
