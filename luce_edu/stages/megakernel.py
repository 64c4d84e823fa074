"""Stage `megakernel`: one cooperative launch per token, with as many blocks as the device holds at once."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from luce_edu.config import LINEAR_ATTENTION, ModelConfig
from luce_edu.paths import csrc_dir
from luce_edu.stages.base import KernelDecoder
from luce_edu.stages.dims import GRID_BARRIER_PASSED, GRID_BARRIER_WORDS, POINTER_BYTES


class MegakernelDecoder(KernelDecoder):
    """Run all phases of a token in csrc/megakernel.cu, with grid barriers in place of launches."""

    stage = "megakernel"
    words = "one kernel per token"
    colour = "green"
    starts = "barrier"
    source = "megakernel.cu"
    kernels = ("megakernel",)

    def __init__(self, model, *, device, max_seq_len, backend=None):
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)
        self.barrier = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32, device=self.device)
        self._tokens = 0
        self._allocate()
        # The kernel reads the addresses of its tensors from two tables in device memory, which are written once.
        self._model_table = self._pointers("Model", [self._model_tensors()])
        self._layer_table = self._pointers("Layer", self._layer_tensors())

    def _argmax_blocks(self) -> int:
        self._smem = table_bytes(self.config, self.backend.csrc_dir)
        self._blocks = self._resident_blocks("megakernel", self._smem)
        return self._blocks

    def _allocate(self) -> None:
        """Allocate what a stage derived from this one needs in its tables."""

    def _step(self, token):
        self._place_token(token)
        args = (self._model_table, self._layer_table, self.state.position, self.state.max_seq_len)
        self._launch("megakernel", self._blocks, *args, smem=self._smem, cooperative=True)
        self._tokens += 1

    @property
    def barriers(self) -> int:
        """Number of grid barriers per token, from the kernel's own count since the last reset."""
        return int(self.barrier[GRID_BARRIER_PASSED]) // max(self._tokens, 1)

    def reset(self) -> None:
        super().reset()
        self.barrier.zero_()
        self._tokens = 0

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        own = (
            "rope_cos", "rope_sin", "hidden_states", "mid", "qkv", "z", "beta", "g", "o", "projected", "partials",
            "act", "logits", "block_best", "next_token", "attention_arrivals", "argmax_arrivals", "barrier",
        )  # fmt: skip
        weights = {name: getattr(self.weights, name) for name in ("embed_tokens", "lm_head", "norm")}
        return weights | {name: getattr(self, name) for name in own}

    def _layer_tensors(self) -> list[dict[str, torch.Tensor]]:
        tables, linear, attention = [], 0, 0
        for layer, kind in zip(self.weights.layers, self.config.layer_types, strict=True):
            names = {
                "input_layernorm.": "input_norm",
                "post_attention_layernorm.": "post_attention_norm",
                "linear_attn.": "deltanet.",
                "self_attn.": "attention.",
                "mlp.": "",
            }
            table = {}
            for name, tensor in layer.items():
                prefix = next(p for p in names if name.startswith(p))
                field = names[prefix] + name.removeprefix(prefix).removesuffix("weight").removesuffix(".")
                table[field] = tensor
            if kind == LINEAR_ATTENTION:
                table["conv_state"] = self.state.conv_state[linear]
                table["recurrent_state"] = self.state.recurrent_state[linear]
                linear += 1
            else:
                table["k_cache"] = self.state.k_cache[attention]
                table["v_cache"] = self.state.v_cache[attention]
                attention += 1
            tables.append(table)
        return tables

    def _pointers(self, struct: str, tables: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Make rows of pointers in the order of the struct's fields; a field that a row does not have is null."""
        fields = _fields(self.source, struct, self.backend.csrc_dir)
        for table in tables:
            unknown = sorted(set(table) - set(fields))
            if unknown:
                raise ValueError(f"{self.source}: struct {struct} has no field {', '.join(unknown)}")
        rows = [[table[field].data_ptr() if field in table else 0 for field in fields] for table in tables]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)


def table_bytes(config: ModelConfig, directory: Path | None = None) -> int:
    """Return the bytes of dynamic shared memory of a block, which copies both tables of pointers there."""
    model, layer = (len(_fields(MegakernelDecoder.source, struct, directory)) for struct in ("Model", "Layer"))
    return POINTER_BYTES * (model + config.num_hidden_layers * layer)


def _fields(kernel: str, struct: str, directory: Path | None) -> list[str]:
    sources = ((directory or csrc_dir()) / name for name in ("phases.cuh", kernel))
    return struct_fields("".join(source.read_text() for source in sources), struct)


def struct_fields(source: str, struct: str) -> list[str]:
    """Return the names of a struct's pointer fields in order; the fields of a struct inside it are 'field.name'.

    They are read from the CUDA source, so that the order is written in one place only.
    """
    match = re.search(rf"struct {struct} \{{(.*?)\n\}};", source, re.DOTALL)
    if match is None:
        raise ValueError(f"no struct {struct} in the source")
    fields = []
    for declaration in re.sub(r"//[^\n]*", "", match[1]).split(";"):
        kind, _, names = declaration.strip().removeprefix("const ").partition(" ")
        for name in names.split(","):
            pointer = declaration.count("*") > 0
            name = name.strip().lstrip("* ")
            if pointer:
                fields.append(name)
            elif name:
                fields += [f"{name}.{inner}" for inner in struct_fields(source, kind)]
    return fields
