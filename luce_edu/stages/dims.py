"""Turn a model's config into the compile-time constants of csrc/dims.cuh, or refuse it."""

from __future__ import annotations

from luce_edu.config import ModelConfig
from luce_edu.errors import ConfigError

BLOCK_THREADS = 512  # 16 warps of at most 128 registers: one block fills an SM's register file
TILE_COLUMNS = 16  # of a head's state, which a block of csrc/delta_rule.cuh takes at a time
MAX_SPLITS = (
    64  # at most so many blocks share the positions of a kv head; each writes head_dim + 4 floats, which are merged
)
GRID_BARRIER_WORDS = 64  # csrc/grid_barrier.cuh: the word that blocks poll, and the count, each in 128 bytes of its own
GRID_BARRIER_PASSED = 32  # the index of the count in these words
SHARED_FLOATS = (
    12 * 1024
)  # 48 KiB of fp32, the shared memory that a block has on every GPU without opting in to more


def kernel_defines(config: ModelConfig) -> dict[str, object]:
    """Return the -D macros for `config`; call `check_kernels_serve` first."""
    return {
        "BLOCK_THREADS": BLOCK_THREADS,
        "MAX_SPLITS": MAX_SPLITS,
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
    longest = max(config.hidden_size, config.intermediate_size, config.value_dim, q_dim)
    # The rest is for scratch beside the staged vector.
    if longest > SHARED_FLOATS - 256:
        raise ConfigError(
            f"kernels hold a vector of at most {SHARED_FLOATS - 256} elements in 48 KiB of shared memory; the largest "
            f"of hidden_size, intermediate_size, value_dim and q_dim is {longest}"
        )
    # The megakernel also holds tables of pointers in shared memory: 24 pointers per layer, and those of the model.
    tables = 8 * 24 * config.num_hidden_layers + 256
    if 4 * longest + tables > 4 * (SHARED_FLOATS - 256):
        raise ConfigError(
            f"the megakernel needs {4 * longest + tables} bytes of shared memory for {config.num_hidden_layers} layers "
            f"and a vector of {longest}, but a block has {4 * (SHARED_FLOATS - 256)}"
        )
    heads_per_kv = config.num_attention_heads // config.num_key_value_heads
    attention = 4 * ((heads_per_kv + 1) * config.head_dim + BLOCK_THREADS * 8 + 2 * BLOCK_THREADS)
    if attention > 4 * SHARED_FLOATS - 1024:
        raise ConfigError(
            f"kernels need {attention} bytes of shared memory for {heads_per_kv} query heads of head_dim "
            f"{config.head_dim}, but a block has 48 KiB"
        )
