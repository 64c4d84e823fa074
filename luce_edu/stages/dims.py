"""Turn a model's config into the compile-time constants of csrc/dims.cuh, or refuse it."""

from __future__ import annotations

from luce_edu.config import ModelConfig
from luce_edu.errors import ConfigError

BLOCK_THREADS = 512  # 16 warps of at most 128 registers: one block fills an SM's register file
TILE_COLUMNS = 16  # of a head's state, which a block of csrc/delta_rule.cuh takes at a time
ATTENTION_UNITS = 128  # of work for blocks in csrc/attention.cuh: an H100 or H200 has a few more SMs
SPLITS_PER_GROUP = 8  # whose results a block of csrc/attention.cuh merges
GRID_BARRIER_WORDS = 64  # csrc/grid_barrier.cuh: the word that blocks poll, and the count, each in 128 bytes of its own
GRID_BARRIER_PASSED = 32  # the index of the count in these words
POINTER_BYTES = 8
STATIC_SHARED = 48 * 1024  # bytes of shared memory that a kernel may declare, on every GPU
# A block of the megakernel has tables of pointers beside them: 24 pointers per layer and those of the model. On Turing,
# 16 KiB are left for them.
MAX_LAYERS = 84


def kernel_defines(config: ModelConfig) -> dict[str, object]:
    """Return the -D macros for `config`; call `check_kernels_serve` first."""
    return {
        "BLOCK_THREADS": BLOCK_THREADS,
        "MAX_SPLITS": max_splits(config),
        "SPLITS_PER_GROUP": SPLITS_PER_GROUP,
        "TILE_COLUMNS": TILE_COLUMNS,
        "VOCAB_SIZE": config.vocab_size,
        "HIDDEN_SIZE": config.hidden_size,
        "INTERMEDIATE_SIZE": config.intermediate_size,
        "NUM_HIDDEN_LAYERS": config.num_hidden_layers,
        "RMS_NORM_EPS": config.rms_norm_eps,
        "NUM_ATTENTION_HEADS": config.num_attention_heads,
        "NUM_KEY_VALUE_HEADS": config.num_key_value_heads,
        "HEAD_DIM": config.head_dim,
        "ROTARY_DIM": config.rotary_dim,
        "LINEAR_NUM_KEY_HEADS": config.linear_num_key_heads,
        "LINEAR_NUM_VALUE_HEADS": config.linear_num_value_heads,
        "LINEAR_KEY_HEAD_DIM": config.linear_key_head_dim,
        "LINEAR_VALUE_HEAD_DIM": config.linear_value_head_dim,
        "LINEAR_CONV_KERNEL_DIM": config.linear_conv_kernel_dim,
    }


def max_splits(config: ModelConfig) -> int:
    """Return how many blocks share the positions of a kv head at most; the grid does not change it, nor any bit."""
    return max(1, ATTENTION_UNITS // config.num_key_value_heads)


def max_groups(config: ModelConfig) -> int:
    """Return how many groups of splits a kv head has at most."""
    return -(-max_splits(config) // SPLITS_PER_GROUP)


def check_kernels_serve(config: ModelConfig) -> None:
    """Raise ConfigError, with field, expectation and value, for a config that csrc/ does not support."""
    q_dim = config.num_attention_heads * config.head_dim
    multiples = {  # a lane loads 8 bf16 weights at a time, and tiles and pairs must be whole
        "hidden_size": (config.hidden_size, 8),
        "intermediate_size": (config.intermediate_size, 8),
        "linear_num_value_heads": (config.linear_num_value_heads, 2),
        "linear_key_head_dim": (config.linear_key_head_dim, 2),
        "linear_value_head_dim": (config.linear_value_head_dim, TILE_COLUMNS),
        "linear_num_value_heads * linear_value_head_dim": (config.value_dim, 8),
        "num_attention_heads * head_dim": (q_dim, 8),
    }
    for name, (value, multiple) in multiples.items():
        if value % multiple:
            raise ConfigError(f"kernels need {name} to be a multiple of {multiple}, got {value}")
    if config.head_dim not in (8, 16, 32, 64, 128, 256):
        raise ConfigError(f"kernels need head_dim 8, 16, 32, 64, 128 or 256, got {config.head_dim}")
    # With more taps, a warp of csrc/causal_conv_sequence.cuh would read state that another warp updates.
    if not 2 <= config.linear_conv_kernel_dim <= 17:
        raise ConfigError(f"kernels need linear_conv_kernel_dim from 2 to 17, got {config.linear_conv_kernel_dim}")
    if config.linear_key_head_dim > 1024:
        raise ConfigError(
            f"kernels need linear_key_head_dim of at most 1024, got {config.linear_key_head_dim}"
        )
    longest = STATIC_SHARED // 4  # floats of a vector that a block stages in shared memory
    vectors = {
        "hidden_size": (config.hidden_size, longest - 256),  # with room for the scratch of its norm
        "intermediate_size": (config.intermediate_size, longest),
        "linear_num_value_heads * linear_value_head_dim": (config.value_dim, longest),
        "num_attention_heads * head_dim": (q_dim, longest),
    }
    for name, (value, most) in vectors.items():
        if value > most:
            raise ConfigError(f"kernels need {name} of at most {most}, to fit in 48 KiB of shared memory, got {value}")
    if config.num_hidden_layers > MAX_LAYERS:
        raise ConfigError(
            f"kernels need at most {MAX_LAYERS} layers, whose pointers the megakernel keeps in shared memory, got "
            f"num_hidden_layers {config.num_hidden_layers}"
        )
    heads_per_kv = config.num_attention_heads // config.num_key_value_heads
    workers = BLOCK_THREADS * 8 // config.head_dim
    attention = 4 * ((heads_per_kv + 1) * config.head_dim + BLOCK_THREADS * 8 + 3 * heads_per_kv * workers)
    if attention > STATIC_SHARED - 1024:
        raise ConfigError(
            f"kernels need {attention} bytes of shared memory for {heads_per_kv} query heads of head_dim "
            f"{config.head_dim}, but a block has 48 KiB"
        )
