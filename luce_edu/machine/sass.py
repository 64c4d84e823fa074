"""The memory instructions of a kernel's machine code, counted. Needs neither a GPU nor a disassembler.

An instruction takes 16 bytes on every GPU since Volta, and its lowest 12 bits are the opcode. NVIDIA does not publish
the numbers. We found these by comparison: tests/machine/test_sass.py compares the counts on each architecture with the
PTX and with the compiler's report of spills.
"""

from __future__ import annotations

import struct

import numpy as np

from luce_edu.machine.cubin import Binary

OPCODES = {
    "LDG": (0x381, 0x981), "STG": (0x386, 0x986),  # global memory: loads, stores
    "LDL": (0x983,), "STL": (0x387,),  # local memory, where spilled values and arrays with a variable index are
    "LDS": (0x984,), "STS": (0x388,),  # shared memory
}  # fmt: skip
_WORD = 16  # bytes of an instruction


def memory_instructions(binary: Binary, kernel: str) -> dict[str, int]:
    """Count the loads and stores in the machine code of `kernel`, by their names in SASS.

    Each instruction counts once, however often it runs and however wide it is. ValueError if there is no such kernel.
    """
    words = np.frombuffer(_section(binary.cubin, f".text.{kernel}"), "<u8").reshape(-1, _WORD // 8)[:, 0]
    found = words & 0xFFF
    return {name: int(np.isin(found, opcodes).sum()) for name, opcodes in OPCODES.items()}


def _section(elf: bytes, name: str) -> bytes:
    """The bytes of a section of a 64-bit ELF file."""
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    for where, _, _, _, offset, length in headers:
        at = headers[names][4] + where
        if elf[at : elf.index(b"\0", at)].decode() == name:
            return elf[offset : offset + length]
    raise ValueError(f"this machine code has no section {name}")
