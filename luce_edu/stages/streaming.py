"""Stage `streaming`: one cooperative launch, whose weights stream through shared memory while blocks wait."""

from __future__ import annotations

import torch

from luce_edu.config import ModelConfig
from luce_edu.stages.dims import BLOCK_THREADS, MAX_SPLITS, TILE_COLUMNS, kernel_defines
from luce_edu.stages.megakernel import MegakernelDecoder
from luce_edu.stages.packing import BATCH_UNITS, CHUNK, SLOT_ROWS, Layout, pack

WARPS = BLOCK_THREADS // 32
PLACE_BYTES = 2 * SLOT_ROWS * CHUNK + 16  # of the ring: a slot and its mbarrier
MOST_RING_SLOTS = 8
PREFETCH_SLOTS = 2  # that a warp prefetches into L2 where there is no ring

# The steps from the megakernel to this stage, each with the macros that it adds to those before it.
STEPS = {
    "prefetch": {"PREFETCH_SLOTS": PREFETCH_SLOTS},
    "ring": {"RING_SLOTS": MOST_RING_SLOTS},
    "words": {"GRID_BARRIERS": 0},
    "split": {"SPLIT_ROWS": 1},
}
_BEFORE = {"PREFETCH_SLOTS": 0, "RING_SLOTS": 0, "GRID_BARRIERS": 1, "SPLIT_ROWS": 0}


class StreamingDecoder(MegakernelDecoder):
    """Run all phases of a token in csrc/streaming.cu.

    steps  how many of STEPS to take, for a comparison of them; None: all
    """

    stage = "streaming"
    words = "one kernel, weights stream"
    colour = "red"
    source = "streaming.cu"
    kernels = ("streaming",)

    def __init__(self, model, *, device, max_seq_len, backend=None, steps: int | None = None):
        self._steps = list(STEPS.values())[:steps]
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)

    def _defines(self):
        options = dict(_BEFORE)
        for step in self._steps:
            options |= step
        shared = shared_bytes(self.config)
        room = (self.backend.shared_memory_per_block - shared) // (WARPS * PLACE_BYTES)
        if self.backend.capability < (8, 0):
            room = 0  # no asynchronous copies before Ampere
        options["RING_SLOTS"] = min(options["RING_SLOTS"], room)
        self._shared = shared + options["RING_SLOTS"] * WARPS * PLACE_BYTES
        self._split_rows = bool(options["SPLIT_ROWS"])
        return kernel_defines(self.config) | options | {
            "SHARED_BYTES": shared, "LAYER_WORDS": layer_words(self.config),
        }  # fmt: skip

    def _argmax_blocks(self) -> int:
        self._blocks = self._resident_blocks("streaming", self._shared)
        return self._blocks

    def _allocate(self) -> None:
        config, blocks = self.config, self._blocks
        layout = Layout(blocks, WARPS, config.hidden_size, self._split_rows)
        self.stream, self.first_slot = pack(self.weights, config, layout)
        self.tagged = self._words(config.num_hidden_layers, layer_words(config))
        self.bests, self.chosen = self._words(blocks, 2), self._words(1)
        partials = (config.num_attention_heads, MAX_SPLITS, config.head_dim + 4)
        self.partial_words = self._words(len(config.attention_layers), *partials)
        self._tag = 0  # the number of the token since the decoder was made; every word says to which one it belongs

    def _words(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def _step(self, token):
        self._place_token(token)
        self._tag += 1
        args = (self._model_table, self._layer_table, self.state.position, self.state.max_seq_len, self._tag)
        self._launch("streaming", self._blocks, *args, smem=self._shared, cooperative=True)
        self._tokens += 1

    def poison(self) -> None:
        super().poison()
        for words in (self.tagged, self.bests, self.chosen, self.partial_words):
            words.fill_(-1)  # NaN, with a tag that no token has

    def _model_tensors(self):
        own = (
            "stream", "first_slot", "rope_cos", "rope_sin", "hidden_states", "logits", "bests", "chosen", "next_token",
            "barrier",
        )  # fmt: skip
        others = {"embed_tokens": self.weights.embed_tokens, "norm": self.weights.norm, "words": self.tagged}
        return others | {n: getattr(self, n) for n in own}

    def _layer_tensors(self):
        kept = {"conv1d", "A_log", "dt_bias", "norm", "q_norm", "k_norm"}
        tables, attention = [], 0
        for table in super()._layer_tensors():
            row = {}
            for name, tensor in table.items():
                mixer, _, field = name.rpartition(".")
                if field in kept or not mixer and not field.endswith("_proj"):
                    row[field] = tensor
            if "k_cache" in row:
                row["partials"] = self.partial_words[attention]
                attention += 1
            tables.append(row)
        return tables


def layer_words(config: ModelConfig) -> int:
    """Return how many tagged words a layer has; csrc/streaming.cu lists them."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    deltanet_in = config.conv_dim + config.value_dim + 2 * config.linear_num_value_heads
    attention_in = 2 * (heads + kv_heads) * config.head_dim
    mixed = max(config.value_dim, heads * config.head_dim)
    squares = config.linear_num_value_heads * (config.linear_value_head_dim // TILE_COLUMNS)
    words = max(deltanet_in, attention_in) + mixed + squares + 2 * config.hidden_size + config.intermediate_size
    return -(-words // 16) * 16


def shared_bytes(config: ModelConfig) -> int:
    """Return a bound of the size of StreamShared in csrc/streaming.cu, which stands before the ring."""
    q_dim = config.num_attention_heads * config.head_dim
    longest = max(config.hidden_size, config.intermediate_size, config.value_dim, q_dim)
    longest = -(-longest // CHUNK) * CHUNK
    heads_per_kv = config.num_attention_heads // config.num_key_value_heads
    delta = 4 * config.linear_key_head_dim + 2 * WARPS * TILE_COLUMNS + 4 * TILE_COLUMNS + 8
    attention = (heads_per_kv + 1) * config.head_dim + 8 * BLOCK_THREADS + 2 * BLOCK_THREADS + 64
    floats = max(longest, delta, attention) + 2 * BATCH_UNITS * SLOT_ROWS + 12 * WARPS + 10
    return -(-(4 * floats + 8 * (16 * config.num_hidden_layers + 24) + 256) // 128) * 128
