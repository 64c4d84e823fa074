"""Stage `streaming`: one cooperative launch, whose weights stream through shared memory while blocks wait."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from luce_edu.config import ModelConfig
from luce_edu.errors import LaunchError
from luce_edu.stages.dims import TILE_COLUMNS, kernel_defines
from luce_edu.stages.megakernel import MegakernelDecoder
from luce_edu.stages.packing import BATCH_UNITS, CHUNK, PIECES, Layout, pack
from luce_edu.stages.sampling import BINS, Sampling

THREADS = 384  # per block: 12 warps of up to 168 registers. With 16 warps of 128, the attention would spill
WARPS = THREADS // 32
PLACE_BYTES = 2 * PIECES * CHUNK + 16  # of the ring: a slot and its mbarrier
MOST_RING_SLOTS = 8
RESERVED_SHARED = 1024  # bytes of an SM's shared memory that each of its blocks takes beside its own
EMPTY = -1  # a cell of csrc/exchange.cuh
POLL_S = 2e-4  # seconds between two looks of the host for the next token

# The macros of csrc/streaming.cu that a variant may change, as the stage has them. A ring takes what fits. How many
# slots a warp prefetches beyond it follows from the GPU.
SHIPPED = {
    "BLOCK_THREADS": THREADS, "BLOCKS_PER_SM": 1, "RING_SLOTS": MOST_RING_SLOTS, "BEYOND_RING": None,
    "PREFETCH_SLOTS": 0, "ATTENTION_SLOTS": 2, "GRID_BARRIERS": 0, "SPLIT_ROWS": 1,
}  # fmt: skip
# Variants of the stage for comparison, each with the macros in which it differs. First the stage after each step that
# leads to it from the megakernel; the last is the stage itself.
STEPS = {
    "no step": {"RING_SLOTS": 0, "GRID_BARRIERS": 1, "SPLIT_ROWS": 0},
    "prefetch": {"RING_SLOTS": 0, "PREFETCH_SLOTS": 1, "GRID_BARRIERS": 1, "SPLIT_ROWS": 0},
    "ring": {"GRID_BARRIERS": 1, "SPLIT_ROWS": 0},
    "words": {"SPLIT_ROWS": 0},
    "split": {},
}
# Then the stage with one thing changed: those first from which most can be learned, and last the one that risks most.
ABLATIONS = {
    "grid barriers": {"GRID_BARRIERS": 1},
    "no ring": {"RING_SLOTS": 0},
    "ring of 2": {"RING_SLOTS": 2},
    "ring of 4": {"RING_SLOTS": 4},
    "none beyond the ring": {"BEYOND_RING": 0},
    "1 beyond the ring": {"BEYOND_RING": 1},
    "2 beyond the ring": {"BEYOND_RING": 2},
    "none in attention": {"ATTENTION_SLOTS": 0},
    "8 warps": {"BLOCK_THREADS": 256},
    "8 warps, ring of 12": {"BLOCK_THREADS": 256, "RING_SLOTS": 12},
    "prefetch of 1": {"RING_SLOTS": 0, "PREFETCH_SLOTS": 1},
    "prefetch of 2": {"RING_SLOTS": 0, "PREFETCH_SLOTS": 2},
    "prefetch of 4": {"RING_SLOTS": 0, "PREFETCH_SLOTS": 4},
    "ring of 6": {"RING_SLOTS": 6},
    "8 warps, 2 blocks per SM": {"BLOCK_THREADS": 256, "BLOCKS_PER_SM": 2},
}
VARIANTS = STEPS | ABLATIONS


class StreamingDecoder(MegakernelDecoder):
    """Run all phases of a token in csrc/streaming.cu.

    variant  a name in VARIANTS, for a comparison; None: the stage as it ships. Raises ValueError for an unknown name
    """

    stage = "streaming"
    words = "one kernel, weights stream"
    colour = "vermillion"
    starts = None  # its blocks wait for words and cells, which nothing counts
    source = "streaming.cu"
    kernels = ("streaming",)

    def __init__(self, model, *, device, max_seq_len, backend=None, variant: str | None = None):
        self._variant = variant
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)

    def _defines(self):
        backend = self.backend
        found = streaming_defines(self.config, backend.shared_memory_per_block, backend.capability, self._variant)
        self._threads = found["BLOCK_THREADS"]
        warps = self._threads // 32
        # Behind the ring an int per warp
        self._shared = found["SHARED_BYTES"] + found["RING_SLOTS"] * warps * PLACE_BYTES + 4 * warps
        self._split_rows = bool(found["SPLIT_ROWS"])
        return found

    def _argmax_blocks(self) -> int:
        self._blocks = self.backend.max_resident_blocks(self.module["streaming"], self._threads, self._shared)
        if self._blocks == 0:
            raise LaunchError(
                f"{self.stage}: a block of {self._threads} threads and {self._shared} bytes of shared memory fits on "
                "no SM; take stage megakernel",
                "not_resident",
            )
        return self._blocks

    def _allocate(self) -> None:
        config, blocks = self.config, self._blocks
        layout = Layout(blocks, self._threads // 32, self._split_rows)
        self.packed, self.first_slot = pack(self.weights, config, layout)
        # Two copies, which tokens use in turn; see csrc/exchange.cuh.
        self.cells = torch.full(
            (2, config.num_hidden_layers, layer_cells(config)), EMPTY, dtype=torch.int32, device=self.device
        )
        self.bests, self.chosen = self._words(blocks, 2), self._words(1)
        self.partial_words = self._words(len(config.attention_layers), *self.partials.shape)
        self._tag = 0  # the number of the last token since the last reset; every word says to which one it belongs

        # What a launch of many tokens tells the host, and the host tells it.
        self.generated = self.backend.shared_with_host(self.state.max_seq_len)
        self.stop = self.backend.shared_with_host(1)
        self.end_tokens = torch.tensor([*config.eos_token_ids, -1], dtype=torch.int32, device=self.device)
        self._running: _Run | None = None
        self._drawing = None  # the kernel that draws, compiled for the first launch of many draws

    def _words(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def _step(self, token):
        self._place_token(token)
        self._prepared(1)()
        self._tag += 1
        self._tokens += 1

    def _prepared(self, tokens: int, sampling: Sampling | None = None) -> Callable[[], None]:
        """Return what launches the kernel for up to `tokens` tokens from state.position on. sampling: None: greedy"""
        kernel, table = self.module["streaming"], self._model_table
        if sampling is not None:
            kernel, table = self._drawing_kernel(), self._drawing_table(sampling)
        args = (table, self._layer_table, self.state.position, self.state.max_seq_len, self._tag + 1, tokens)
        return functools.partial(
            self.backend.launch, kernel, self._blocks, self._threads, self._shared, args, cooperative=True
        )

    def _drawing_kernel(self):
        if self._drawing is None:
            defines = self._defines() | {"DRAWS": 1}
            self._drawing = self.backend.compile(self.source, self.kernels, defines)["streaming"]
        return self._drawing

    def _drawing_table(self, sampling: Sampling) -> torch.Tensor:
        sampler = self._sampler()
        own = {"sampling": sampler.on_device(sampling), "sampling_memory": sampler.memory}
        self.backend.name_tensors(own)
        others = {"block_best": self.block_best, "arrivals": self.argmax_arrivals}
        return self._pointers("Model", [self._model_tensors() | own | others])

    def _stream(self, tokens, max_new_tokens, temperature, how):
        self.reset()
        self.prefill(tokens)
        if temperature > 0:
            self.draw(temperature, **how)
        runs, token = self._runs, self.choice()
        yield token
        if token in self.config.eos_token_ids:
            return
        self._check_runs(runs)
        if max_new_tokens > 1:
            sampling = Sampling(temperature, **how) if temperature > 0 else None
            yield from self._stream_choices(max_new_tokens - 1, sampling)

    def _stream_choices(self, tokens: int, sampling: Sampling | None = None) -> Iterator[int]:
        """Decode the model's choices, up to `tokens` of them in one launch; yield what it chooses after each.

        sampling  by which each choice is drawn; None: greedy
        The launch does not wait for the caller. If the caller leaves or interrupts, it ends with its next token, and
        `position` then counts the tokens that it has decoded, which may be more than the caller has seen.
        """
        self._expected = None
        with super()._moving_on(0):
            runs, first = self._runs, self.state.position
            self.generated.fill_(-1)
            self.stop.zero_()
            self._running = run = _Run(self, tokens, sampling)
        try:
            for number, token in enumerate(run):
                self.state.position = first + number + 1
                yield self._checked(token)
                self._check_runs(runs)
        finally:
            if self._running is run:
                self._end_run()

    def _end_run(self) -> None:
        """End the launch of many tokens that may be running, after its next token, and count what it has decoded."""
        run, self._running = self._running, None
        if run is not None:
            self._failed = True  # stays so if a kernel has failed, which raises here
            decoded = run.end()
            # Tokens use the two copies of the cells in turn. So the last token's tag counts, not the number asked for.
            self._tag = int(self.bests[0, 1]) >> 32
            self._failed, self._has_drawn = False, run.draws
            self._runs += 1
            self.state.position = run.first + decoded
            self._tokens += decoded

    def choice(self) -> int:
        self._end_run()
        return super().choice()

    def draw(self, *args, **how) -> None:
        self._end_run()
        super().draw(*args, **how)

    @contextmanager
    def _moving_on(self, tokens):
        self._end_run()
        with super()._moving_on(tokens):
            yield

    def reset(self) -> None:
        self._end_run()
        super().reset()
        self._tag = 0
        self._fill_words(0)  # a tag that no token has
        self.cells.fill_(EMPTY)

    def poison(self) -> None:
        self._end_run()
        super().poison()
        self._fill_words(-1)  # NaN, with a tag that no token has
        self.cells.fill_(EMPTY)  # which is a NaN, too

    def _fill_words(self, value: int) -> None:
        for words in (self.bests, self.chosen, self.partial_words):
            words.fill_(value)

    def named_tensors(self):
        kinds = super().named_tensors()
        kinds["weights"]["packed"] = kinds["activations"].pop("packed")
        return kinds

    def _model_tensors(self):
        own = (
            "first_slot", "rope_cos", "rope_sin", "hidden_states", "logits", "cells", "bests", "chosen",
            "next_token", "generated", "stop", "end_tokens", "barrier",
        )  # fmt: skip
        others = {
            "embed_tokens": self.weights.embed_tokens, "norm": self.weights.norm, "stream": self.packed,
        }  # fmt: skip
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


class _Run:
    """A launch of many tokens, which the host follows token by token."""

    def __init__(self, decoder: StreamingDecoder, tokens: int, sampling: Sampling | None):
        self._decoder, self._tokens, self.first = decoder, tokens, decoder.position
        self.draws = sampling is not None
        self._ended = decoder.backend.start(decoder._prepared(tokens, sampling))

    def __iter__(self) -> Iterator[int]:
        generated = self._decoder.generated
        for number in range(self._tokens):
            while int(generated[number]) < 0:
                if self._ended.is_set() and int(generated[number]) < 0:
                    return
                time.sleep(POLL_S)
            yield int(generated[number])

    def end(self) -> int:
        """Let the launch end with its next token, wait for it, and return how many tokens it has decoded."""
        self._decoder.stop.fill_(1)
        self._ended.wait()
        return int((self._decoder.generated[: self._tokens] >= 0).sum())


def streaming_defines(
    config: ModelConfig, shared_memory: int, capability: tuple[int, int], variant: str | None = None
) -> dict[str, int]:
    """Return the macros of csrc/streaming.cu.

    shared_memory  bytes that a block of the GPU may have: the ring takes what the rest leaves
    capability     the GPU's compute capability
    variant        as for StreamingDecoder
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"variant: unknown name {variant!r}; expected one of {', '.join(VARIANTS)}")
    options = SHIPPED | VARIANTS.get(variant, {})
    threads, blocks = options["BLOCK_THREADS"], options["BLOCKS_PER_SM"]
    shared = shared_bytes(config, threads)
    of_block = (shared_memory + RESERVED_SHARED) // blocks - RESERVED_SHARED
    room = max((of_block - shared - 4 * (threads // 32)) // (threads // 32 * PLACE_BYTES), 0)
    if capability < (8, 0):
        room = 0  # no asynchronous copies before Ampere
    options["RING_SLOTS"] = min(options["RING_SLOTS"], room)
    if options["RING_SLOTS"] == 0:
        options["BEYOND_RING"] = options["ATTENTION_SLOTS"] = 0
    elif options["BEYOND_RING"] is None:
        options["BEYOND_RING"] = slots_beyond_ring(capability)
    own = {
        "SHARED_BYTES": shared, "LAYER_CELLS": layer_cells(config), "END_TOKENS": len(config.eos_token_ids), "DRAWS": 0,
    }  # fmt: skip
    return kernel_defines(config) | options | own


def slots_beyond_ring(capability: tuple[int, int]) -> int:
    """Return how far beyond its ring a warp prefetches into L2, in slots.

    By the clock, a Hopper's deep ring gains nothing from it, and the 6 MB of an sm_86's L2 have room for one slot.
    """
    return 0 if capability[0] == 9 else 1 if capability in ((8, 6), (8, 7)) else 2


def order_of_sums(variant: str | None) -> tuple[int, int]:
    """Return what decides in which order a variant adds. Those with the same give the same bits."""
    options = SHIPPED | VARIANTS.get(variant, {})
    return options["BLOCK_THREADS"], options["SPLIT_ROWS"]


def distinct_variants(config: ModelConfig, shared_memory: int, capability: tuple[int, int]) -> dict[str, str | None]:
    """Return for each variant None, or the name of an earlier one that is the same on this GPU, or of the stage.

    The ring of a GPU with little shared memory has few slots, so that two limits on them may come to the same. The
    arguments are those of `streaming_defines`.
    """
    names: dict[frozenset, str] = {}
    found = {}
    for variant in (None, *VARIANTS):
        defines = frozenset(streaming_defines(config, shared_memory, capability, variant).items())
        found[variant] = names.get(defines)
        names.setdefault(defines, variant or StreamingDecoder.stage)
    del found[None]
    return found


def layer_cells(config: ModelConfig) -> int:
    """Return how many cells a layer has; csrc/streaming.cu lists them."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    deltanet_in = config.conv_dim + config.value_dim + 2 * config.linear_num_value_heads
    attention_in = 2 * (heads + kv_heads) * config.head_dim
    mixed = max(config.value_dim, heads * config.head_dim)
    squares = config.linear_num_value_heads * 32  # a line of 128 bytes for each head
    vectors = (max(deltanet_in, attention_in), mixed, squares, config.hidden_size, config.intermediate_size)
    return -(-(sum(-(-n // 4) * 4 for n in vectors) + config.hidden_size) // 32) * 32


def shared_bytes(config: ModelConfig, threads: int) -> int:
    """Return a bound of the size of StreamShared in csrc/streaming.cu, which stands before the ring."""
    warps = threads // 32
    q_dim = config.num_attention_heads * config.head_dim
    longest = max(config.hidden_size, config.intermediate_size, config.value_dim, q_dim)
    longest = -(-longest // (PIECES * CHUNK)) * PIECES * CHUNK
    heads_per_kv = config.num_attention_heads // config.num_key_value_heads
    delta = 4 * config.linear_key_head_dim + 2 * warps * TILE_COLUMNS + 4 * TILE_COLUMNS + 8
    workers = threads * 8 // config.head_dim
    merged = max(workers, heads_per_kv + 5)
    attention = (heads_per_kv + 1 + merged) * config.head_dim + 3 * heads_per_kv * workers + 64
    sampling = 3 * BINS + 4 * warps + 8
    floats = max(longest, delta, attention, sampling) + 8 * BATCH_UNITS + 12 * warps + 10
    return -(-(4 * floats + 8 * (16 * config.num_hidden_layers + 24) + 256) // 128) * 128
