"""Launches as the core takes them, recorded into an image that another build of the core replays (replay.cpp)."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luce_edu.machine import kernels
from luce_edu.machine.core import LaunchText, OrderText, ProgramText, Tensor, core, operations

_MAGIC = 0x2179616C70657221
_INSTRUCTION = 32  # bytes of each struct that core.py does not declare
_COUNT, _SITE, _TRAFFIC, _TOTALS = 16, 40, 64, 16
MEMORY, COUNTERS, REPORT = "memory", "counters", "report"


class Image:
    """Bytes in which every pointer is an offset; parts are aligned to 64 bytes, as much as any struct needs."""

    def __init__(self):
        self.content = bytearray(64)  # the header's place
        self._shared: dict[bytes, int] = {}

    def room(self, size: int) -> int:
        """Append `size` zero bytes; return their offset."""
        at = -(-len(self.content) // 64) * 64
        self.content += bytes(at - len(self.content) + size)
        return at

    def add(self, content: bytes) -> int:
        """Append `content`, which nothing may write to, or find it; return its offset."""
        if content not in self._shared:
            at = self._shared[content] = self.room(len(content))
            self.content[at : at + len(content)] = content
        return self._shared[content]

    def add_array(self, parts: Sequence) -> int:
        """Append these structs or bytes, one after another; return their offset."""
        content = b"".join(bytes(part) for part in parts)
        at = self.room(len(content))
        self.content[at : at + len(content)] = content
        return at


@dataclass(frozen=True)
class Recording:
    """Runs of launches, and their results in this process.

    image     for the driver
    orders    where each run's OrderText is in it
    expected  (number of the run, one of MEMORY, COUNTERS, REPORT; offset in the image; bytes)
    """

    image: bytes
    orders: tuple[int, ...]
    expected: tuple[tuple[int, str, int, bytes], ...]

    def ordered(self, **order: int) -> bytes:
        """The image with these fields of OrderText changed in every run."""
        image = bytearray(self.image)
        for at in self.orders:
            text = OrderText.from_buffer(image, at)
            for name, value in order.items():
                setattr(text, name, value)
        return bytes(image)

    def differences(self, output: bytes, what: Sequence[str] = (MEMORY, COUNTERS, REPORT)) -> list[str]:
        """Where a replay's output differs from the results of this process."""
        return [
            f"run {run}, {kind} at {at}: {len(content)} bytes"
            for run, kind, at, content in self.expected
            if kind in what and output[at : at + len(content)] != content
        ]


class Recorder:
    """Replaces `kernels.core()` while it is entered: passes calls on to the core, and records them.

    order    fields of OrderText that are changed in every run
    """

    def __init__(self, **order: int):
        self._core, self._image, self._order = core(), Image(), order
        self._programs: list[ProgramText] = []
        self._numbers: dict[int, int] = {}  # of the program with this handle
        self._runs: list[bytes] = []
        self._orders: list[int] = []
        self._expected: list[tuple[int, str, int, bytes]] = []

    def __enter__(self) -> Recorder:
        kernels.core = lambda: self
        return self

    def __exit__(self, *_) -> None:
        kernels.core = core

    def __getattr__(self, name: str):
        return getattr(self._core, name)

    def luce_load(self, reference) -> int:
        text, handle = reference._obj, self._core.luce_load(reference)
        copy = ProgramText.from_buffer_copy(text)
        sizes = {
            "code": _INSTRUCTION * text.count, "image": text.image_bytes, "specials": 8 * text.specials_count,
            "block_lengths": 4 * text.blocks_count, "lines": 4 * text.count,
        }  # fmt: skip
        for name, size in sizes.items():
            setattr(copy, name, self._image.add(_bytes_at(getattr(text, name), size)))
        self._numbers[handle] = len(self._programs)
        self._programs.append(copy)
        return handle

    def luce_run(self, texts, count: int, order, report) -> None:
        ranges = {(tensor.begin, tensor.end) for text in texts for tensor in _tensors(text)}
        before = {(begin, end): _bytes_at(begin, end - begin) for begin, end in sorted(ranges)}
        for name, value in self._order.items():
            setattr(order._obj, name, value)
        self._core.luce_run(texts, count, order, report)
        image, written, launches = self._image, set(), []
        for text in texts:
            program, tensors = self._programs[self._numbers[text.program]], _tensors(text)
            copy = LaunchText.from_buffer_copy(text)
            copy.program = self._numbers[text.program]
            copy.parameters = image.add(_bytes_at(text.parameters, max(program.parameter_bytes, 8)))
            copy.tensors = image.add_array([Tensor(t.begin, t.end, 0, 0, t.read_only) for t in tensors])
            sizes = {
                "counts": _COUNT * program.blocks_count, "sites": _SITE * program.sites_count,
                "traffic": _TRAFFIC * len(tensors), "totals": _TOTALS,
            }  # fmt: skip
            for name, size in sizes.items():
                setattr(copy, name, self._expect(COUNTERS, _bytes_at(getattr(text, name), size)))
            launches.append(copy)
            for k, tensor in enumerate(tensors):
                asked_write = ctypes.c_uint64.from_address(text.traffic + _TRAFFIC * k + 8).value
                if asked_write:
                    written.add((tensor.begin, tensor.end))
        regions = [
            struct.pack(
                "<4Q", begin, end - begin, image.add(content),
                self._expect(MEMORY, _bytes_at(begin, end - begin)) if (begin, end) in written else 0,
            )
            for (begin, end), content in before.items()
        ]  # fmt: skip
        self._orders.append(image.add_array([order._obj]))
        run = (
            image.add_array(launches), len(launches), image.add_array(regions), len(regions), self._orders[-1],
            self._expect(REPORT, bytes(report._obj)),
        )  # fmt: skip
        self._runs.append(struct.pack("<6Q", *run))

    def _expect(self, what: str, content: bytes) -> int:
        at = self._image.room(len(content))
        self._expected.append((len(self._runs), what, at, content))
        return at

    def recording(self) -> Recording:
        """Everything that was recorded; to be called once, at the end."""
        names, image = b"".join(name.encode() + b"\0" for name in operations()), self._image
        parts = (
            image.add(names), len(operations()), image.add_array(self._programs), len(self._programs),
            image.add_array(self._runs), len(self._runs),
        )  # fmt: skip
        struct.pack_into("<7Q", image.content, 0, _MAGIC, *parts)
        return Recording(bytes(image.content), tuple(self._orders), tuple(self._expected))


def replayed(command: Sequence[str], image: bytes, folder: Path) -> bytes:
    """The driver's output. A driver that itself lies at an address of the image is started again, three times."""
    (folder / "image").write_bytes(image)
    for _ in range(3):
        done = subprocess.run([*command, folder / "image", folder / "output"], capture_output=True, text=True)
        if done.returncode != 3:
            break
    assert done.returncode == 0, (done.returncode, done.stderr)
    return (folder / "output").read_bytes()


def _tensors(text: LaunchText) -> list[Tensor]:
    return list((Tensor * text.tensors_count).from_address(text.tensors)) if text.tensors_count else []


def _bytes_at(address: int | None, size: int) -> bytes:
    return ctypes.string_at(address, size) if size else b""
