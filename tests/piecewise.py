"""prefill.cu compiled in pieces, so that only the kernels that a planted fault may change are compiled again."""

import re

from luce_edu.backends.host import HostBackend
from luce_edu.machine.kernels import load
from luce_edu.machine.module import Module
from luce_edu.machine.nvrtc import compile_ptx, read_sources

KERNEL = re.compile(r"^KERNEL(?:_FOR\(\d\))? (\w+)\(.*?^}$", re.MULTILINE | re.DOTALL)
# {the kernels of a piece: the header that they include beside phases.cuh}. A missing header is a compile error.
PIECES = {
    ("delta_rule_prepare",): "delta_rule_chunk.cuh",
    ("delta_rule_scan",): "delta_rule_chunk.cuh",
    ("embed_norm", "add_norm", "causal_conv"): "causal_conv_sequence.cuh",
    ("attention", "swiglu"): "causal_attention.cuh",
    ("last_hidden", "gated_rms_norm", "attention_prepare", "lm_head"): "",
}


class Piecewise(HostBackend):
    """Compiles each piece of prefill.cu as a program of its own: the file's text without the other kernels and headers.

    A piece whose sources a fault does not change comes out of the cache.
    """

    def compile(self, source, kernels, defines):
        if source != "prefill.cu":
            return super().compile(source, kernels, defines)
        whole, found = read_sources(source, csrc=self.csrc_dir)[source], {}
        for names, header in PIECES.items():
            if not {*names} & {*kernels}:
                continue
            text = compile_ptx(source, piece(whole, names, header), names, defines, self.card.arch, csrc=self.csrc_dir)
            module = load(text, card=self.card, source=source)
            found |= {name: module[name] for name in names}
        return Module(source, {name: found[name] for name in kernels})


def piece(whole: str, names, header: str) -> str:
    """The text of prefill.cu with these kernels alone; every line keeps its number."""
    for other in {*PIECES.values()} - {header, ""}:
        whole = whole.replace(f'#include "{other}"\n', "\n")
    return KERNEL.sub(lambda kernel: kernel[0] if kernel[1] in names else "\n" * kernel[0].count("\n"), whole)
