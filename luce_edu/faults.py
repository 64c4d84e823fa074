"""Planted faults: small, plausible mistakes in the kernels. Verification must find each of them.

A fault is a patch to a copy of csrc/, so the sources themselves stay as they are. If the text that it replaces is not
found exactly once, that is an error; so a fault cannot become a no-op unnoticed.

    with planted(fault("decay left out of S^T k")) as tree:
        backend = make_backend("host", csrc_dir=tree)
        verify(model, stages=["megakernel"], make=lambda s: decoder(s, model, "host", backend=backend))
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from luce_edu.paths import csrc_dir

ALL = ("per_op", "per_layer", "megakernel")
FUSED = ("per_layer", "megakernel")
ELSEWHERE = "machine"  # the folder of csrc/ that holds no kernels
DRAWN = ("megakernel",)  # the kernel of draws is the same for every stage
REPLAYED = ("graph", "per_layer")  # stages whose kernels read token and position from memory


@dataclass(frozen=True)
class Fault:
    """A mistake in csrc/`path`, where `old` becomes `new`.

    stages  the stages that run the changed lines
    steps   tokens of `model` after which the mistake can show; for PREFILL_FAULTS, which every stage made of kernels
            runs, the length of a prompt in which it shows
    """

    name: str
    path: str
    old: str
    new: str
    stages: tuple[str, ...] = FUSED
    steps: int = 4
    model: str = "random-odd"


def fault(name: str) -> Fault:
    """Return the fault of that name, for decoding or for prompts; ValueError with the known names."""
    every = FAULTS + SMALL_FAULTS + STREAMING_FAULTS + PREFILL_FAULTS + SMALL_PREFILL_FAULTS
    for candidate in every:
        if candidate.name == name:
            return candidate
    names = "; ".join(f.name for f in every)
    raise ValueError(f"unknown fault {name!r}; expected one of {names}")


@contextmanager
def planted(*faults: Fault) -> Iterator[Path]:
    """Make a temporary copy of csrc/'s kernels with these faults, applied in order.

    A decoder made inside the `with` can be used after it. Raises ValueError, naming fault and file, unless `old` is
    there exactly once.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "csrc"
        shutil.copytree(csrc_dir(), tree, ignore=shutil.ignore_patterns(ELSEWHERE))
        for one in faults:
            file = tree / one.path
            if not file.is_file():
                raise ValueError(f"{one.name}: no file csrc/{one.path}")
            text = file.read_text(encoding="utf-8")
            if text.count(one.old) != 1:
                raise ValueError(
                    f"{one.name}: expected its text exactly once in csrc/{one.path}, found it "
                    f"{text.count(one.old)} times: {one.old!r}"
                )
            file.write_text(text.replace(one.old, one.new), encoding="utf-8")
        yield tree


def _no_grid_barrier(phase: str, end: str, indent: int) -> Fault:
    """Replace the grid barrier after a phase of the megakernel by a block barrier; `end` is the text before it.

    Without any barrier, threads would read pointers that other threads overwrite, and crash the whole process.
    """
    end += "\n" + " " * indent
    return Fault(
        f"no grid barrier after {phase}", "megakernel.cu",
        end + "grid_barrier(m.barrier);\n", end + "__syncthreads();\n", ("megakernel",),
    )  # fmt: skip


def _no_sync(where: str, path: str, comment: str, stages: tuple[str, ...] = FUSED, steps: int = 2) -> Fault:
    """Leave out a barrier inside a block, found by the start of its comment."""
    old = f"__syncthreads();  // {comment}"
    return Fault(f"no __syncthreads in {where}", path, old, f"// {comment}", stages, steps)


FAULTS = (
    # The delta rule. The first two stood in another project's released kernel, whose text still read well.
    Fault(
        "decay left out of S^T k", "delta_rule.cuh",
        "beta * (v_column - decay * k_sum)", "beta * (v_column - k_sum)", steps=8,
    ),
    Fault(
        "decay left out of S^T k, plain form", "delta_rule.cuh",
        "fmaf(decay * S[i * value_head_dim + column], k[i], S_k)",
        "fmaf(S[i * value_head_dim + column], k[i], S_k)", ("per_op",), steps=8,
    ),
    Fault(
        "o read before the update", "delta_rule.cuh",
        "fmaf(delta, shared->k_dot_q, decay * q_sum)", "decay * q_sum",
    ),
    Fault(
        "q not scaled", "delta_rule.cuh",
        "shared->q, rsqrtf(static_cast<float>(key_head_dim))", "shared->q, 1.0f",
        model="tiny",  # the norm after it cancels any scale, except for its epsilon, which random-odd has near 0
    ),
    Fault("A_log without exp", "activations.cuh", "-expf(A_log)", "-A_log", ALL),
    Fault("beta without sigmoid", "phases.cuh", "b_row] = sigmoid(value)", "b_row] = value"),
    Fault("beta and g swapped", "phases.cuh", "beta[head], g[head], tile", "g[head], beta[head], tile"),
    Fault("wrong key head", "phases.cuh", "head / value_heads_per_key", "head % num_key_heads"),
    Fault(
        "wrong key head, per_op", "per_op.cu",
        "head / value_heads_per_key", "head % num_key_heads", ("per_op",),
    ),
    Fault("conv_state does not move on", "causal_conv.cuh", "if (j > 0) state[j - 1] = window.input[j];", "", ALL),
    # Attention and its cache
    Fault(
        "cache written one position early", "attention.cuh",
        "a.max_seq_len + a.position) * head_dim;", "a.max_seq_len + max_of(a.position - 1, 0)) * head_dim;",
    ),
    Fault(
        "cache written one position early, per_op", "per_op.cu",
        "max_seq_len + position) * head_dim", "max_seq_len + max_of(position - 1, 0)) * head_dim",
        ("per_op",),
    ),
    Fault(
        "cache read one position too far", "attention.cuh",
        "const int positions = a.position + 1;", "const int positions = a.position + 2;",
    ),
    Fault(
        "newest position not read", "per_op.cu",
        "if (p > position) return;", "if (p >= position) return;", ("per_op",),
    ),
    Fault(
        "sine of the position before", "attention.cuh",
        "a.rope_sin + static_cast<size_t>(a.rope_row)",
        "a.rope_sin + static_cast<size_t>(max_of(a.rope_row - 1, 0))",
    ),
    Fault(
        "wrong kv head", "per_op.cu",
        "k_cache + (static_cast<size_t>(head / heads_per_kv)",
        "k_cache + (static_cast<size_t>(head % num_key_value_heads)", ("per_op",),
    ),
    Fault("output gate without sigmoid", "attention.cuh", "mean[j] * sigmoid(gate[j])", "mean[j] * gate[j]"),
    # The online softmax of a worker, of a block's workers, of a head's splits; after `steps` there are several of them.
    Fault(
        "a position's own maximum in place of its group's", "attention.cuh",
        "maximum[i] = fmaxf(maximum[i], __shfl", "maximum[i] = fmaxf(-INFINITY, __shfl", steps=24,
    ),
    Fault(
        "sums of the neighbouring head", "attention.cuh",
        "const float kept = upper && n > 1", "const float kept = !upper && n > 1",
    ),
    Fault(
        "newest key not read", "attention.cuh",
        "if (newest < left && g * workers == newest)", "if (newest < left && g * workers > newest)",
    ),
    Fault(
        "workers not rescaled", "attention.cuh",
        "= expf(soft.maximum[i] - maximum);", "= 1.0f;", steps=12,
    ),
    Fault(
        "splits not rescaled", "attention.cuh",
        "const float scale = expf(ends[e].x - maximum);", "const float scale = 1.0f;", steps=36,
    ),
    # Norms, rows that are not written, the greedy choice
    Fault("norm not zero-centred", "rms_norm.cuh", "(1.0f + weight[c])", "weight[c]", ALL),
    Fault("last row not written", "matvec.cuh", "row < rows;", "row < rows - 1;"),
    Fault(
        "last row not written, per_op", "per_op.cu",
        "if (row >= rows) return;", "if (row >= rows - 1) return;", ("per_op",),
    ),
    Fault(
        "odd vocabulary's last row not written", "phases.cuh",
        "row < vocab_size; row += 2", "row + 1 < vocab_size; row += 2",
    ),
    Fault("argmax forgets most warps", "argmax.cuh", "w < block_warps", "w < 2", ALL),
    Fault("arrivals not counted from 0", "block.cuh", "if (last) *counter = 0u;", "", ALL),
    # Draws
    Fault("Philox with nine rounds", "sampling.cuh", "round < 10", "round < 9", DRAWN),
    Fault("the same random numbers everywhere", "sampling.cuh", "static_cast<unsigned>(position)", "0u", DRAWN),
    Fault("one random number for four tokens", "sampling.cuh", "random.word[i]", "random.word[0]", DRAWN),
    Fault(
        "temperature left out of the draw", "sampling.cuh",
        "const float weight = token_weight(logit, maximum, sampling.scale)",
        "const float weight = token_weight(logit, maximum, 1.442695f)", DRAWN,
    ),
    Fault("top-p before top-k", "sampling.cuh", "key < cut || key - low", "key == 0u || key - low", DRAWN),
    Fault("top-k keeps one too few", "sampling.cuh", "long>(sampling.top_k)", "long>(sampling.top_k - 1)", DRAWN),
    Fault("top-k keeps one too many", "sampling.cuh", "long>(sampling.top_k)", "long>(sampling.top_k + 1)", DRAWN),
    Fault(
        "the last kept token dropped", "sampling.cuh",
        "return low > cut ? low : cut;", "return low > cut ? low + (1u << shift) : cut;", DRAWN,
    ),
    Fault(
        "search ends after one step", "sampling.cuh",
        "shift == 0 || shared->bin_count == 1u", "true", DRAWN,
    ),
    Fault("bins not cleared after a draw", "sampling.cuh", "i < used * ", "i < 0 * ", DRAWN),
    _no_sync("fill_bins, before", "sampling.cuh", "the bins in shared memory are 0", DRAWN),
    _no_sync("fill_bins, after", "sampling.cuh", "the block's tokens are in its bins", DRAWN),
    _no_sync("find_bin, after the sums", "sampling.cuh", "every warp's sum is in shared memory", DRAWN),
    _no_sync("find_bin, after the search", "sampling.cuh", "the bin is in shared memory", DRAWN),
    # Token and position in memory, for graphs, in which a kernel's arguments never change
    Fault("embed moves the position on only once", "per_layer.cu", "++*position;", "*position = 0;", REPLAYED),
    Fault(
        "attention at the position that embed has left", "per_layer.cu",
        "o, arrivals, *position,", "o, arrivals, max_of(*position - 1, 0),", REPLAYED,
    ),
    Fault(
        "token overwritten before all have read it", "per_layer.cu",
        "++*position;", "{ ++*position; *const_cast<int*>(token) = 0; }", REPLAYED,
    ),
    # Barriers for the whole grid
    _no_grid_barrier("embed", "token, m.hidden_states);", 4),
    _no_grid_barrier("deltanet_in", "m.beta, m.g, &shared.matvec);", 12),
    _no_grid_barrier("delta_rule", "m.o, &shared.delta_rule);", 12),
    _no_grid_barrier("attention_in", "m.projected, &shared.matvec);", 12),
    _no_grid_barrier("attention", "&shared.attention);", 12),
    _no_grid_barrier("deltanet_out and attention_out", "\n        }", 8),
    _no_grid_barrier("mlp_up", "m.act, &shared.matvec);", 8),
    _no_grid_barrier("mlp_down", "hidden_size, &shared.matvec);", 8),
    Fault(
        "grid barrier opens one block early", "grid_barrier.cuh",
        "(gridDim.x - 1)", "(gridDim.x - 2)", ("megakernel",),
    ),
    Fault(
        "grid barrier to which every block adds 1", "grid_barrier.cuh",
        "blockIdx.x == 0 ? top_bit - (gridDim.x - 1) : 1u", "1u", ("megakernel",),
    ),
    Fault(
        "grid barrier that waits for a set bit", "grid_barrier.cuh",
        "wait_while_equal(&barrier->word, before, top_bit);", "wait_while_equal(&barrier->word, 0u, top_bit);",
        ("megakernel",),
    ),
    Fault(
        "grid barrier opens with the next arrival", "grid_barrier.cuh",
        "wait_while_equal(&barrier->word, before, top_bit);", "wait_while_equal(&barrier->word, before + share);",
        ("megakernel",),
    ),
    Fault(  # the race is there without the sleep too, which makes it likely
        "grid barrier reads the word late", "grid_barrier.cuh",
        "        const unsigned before = add_release(&barrier->word, share);\n",
        "        add_release(&barrier->word, share);\n"
        "        __nanosleep(1000);\n"
        "        const unsigned before = load_acquire(&barrier->word);\n",
        ("megakernel",),
    ),
    Fault(
        "grid barrier that some warps do not wait for", "grid_barrier.cuh",
        "    }\n    __syncthreads();\n}", "    }\n}", ("megakernel",),
    ),
    Fault(
        "grid barrier that does not wait for its own warps", "grid_barrier.cuh",
        "GridBarrier* barrier) {\n    __syncthreads();", "GridBarrier* barrier) {", ("megakernel",),
    ),
    Fault(
        "grid barrier that block 0 skips", "megakernel.cu",
        "token, m.hidden_states);\n    grid_barrier(m.barrier);",
        "token, m.hidden_states);\n    if (blockIdx.x != 0) grid_barrier(m.barrier);",
        ("megakernel",),
    ),
    # Barriers inside a block
    _no_sync("block_sum", "block.cuh", "every warp's sum is in scratch", ALL),
    _no_sync("last_block_to_arrive", "block.cuh", "thread 0's acquire comes before the whole block's reads"),
    _no_sync("delta_rule_tile, after the norms", "delta_rule.cuh", "q, k and k_dot_q are in shared memory"),
    _no_sync("delta_rule_tile, after the sums", "delta_rule.cuh", "every warp's partial sums are in shared memory"),
    _no_sync("delta_rule_tile, after delta", "delta_rule.cuh", "delta is in shared memory"),
    _no_sync("delta_rule_phase", "phases.cuh", "the next tile reuses the shared memory"),
    _no_sync("prepare_heads", "attention.cuh", "the queries are in shared memory, and the newest k and v"),
    _no_sync("merge_workers, after the maxima", "attention.cuh", "every worker's maximum is in shared memory"),
    _no_sync("merge_workers", "attention.cuh", "every worker's sums are in shared memory"),
    _no_sync("merge_workers, between heads", "attention.cuh", "the next head may overwrite"),
    _no_sync("lm_head_phase", "phases.cuh", "the staged vector is no longer needed"),
    _no_sync("grid_argmax", "argmax.cuh", "every warp's best is in shared memory", ALL, steps=8),
    _no_sync("matvec", "per_op.cu", "x is in shared memory", ("per_op",)),
    _no_sync("softmax", "per_op.cu", "every warp's maximum is in shared memory", ("per_op",), steps=36),
    _no_sync("softmax, before the sum", "per_op.cu", "everyone has read them", ("per_op",), steps=8),
    Fault(
        "no __syncthreads in stage_norm", "phases.cuh",
        "shared->x[staged(i)] = y; });\n    __syncthreads();", "shared->x[staged(i)] = y; });",
    ),
    Fault(
        "no __syncthreads in stage_vector", "phases.cuh",
        "shared->x[staged(c)] = value[i];\n    }\n    __syncthreads();", "shared->x[staged(c)] = value[i];\n    }",
    ),
    Fault(
        "no __syncthreads in stage_gated_norm", "phases.cuh",
        "shared->x[staged(at + i)] = y; });\n    }\n    __syncthreads();", "shared->x[staged(at + i)] = y; });\n    }",
    ),
    Fault("no __syncwarp before RoPE", "attention.cuh", "__syncwarp();  // RoPE reads", "// RoPE reads"),
    Fault(
        "no __syncwarp before the queries change places", "attention.cuh",
        "__syncwarp();  // all of x is read", "// all of x is read",
    ),
)  # fmt: skip

DECAY = "    const float decay = expf(g);\n    if"  # of the tiled form
BF16 = "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16"
LAST_COLUMN = "fmaf(k, shared->delta[quad * 4 + 3], decay * s[i].w)"
TURNED = "        const float a = y[i], b = y[i + rotary_dim / 2];"
TURNED_TOO_FAR = """\
        const float a = y[i] - 1e-3f * y[i + rotary_dim / 2], b = y[i + rotary_dim / 2] + 1e-3f * y[i];"""

# Faults whose effect is a hundred or a thousand times smaller than the error of bf16. The comparison by fp32's error
# finds them; most pass the one by bf16's.
SMALL_FAULTS = (
    Fault("decay 0.9995 times the right one", "delta_rule.cuh", DECAY, DECAY.replace("expf(g)", "0.9995f * expf(g)")),
    Fault(
        "decay 0.9995 times the right one, plain form", "delta_rule.cuh",
        "const float decay = expf(g);\n    float S_k", "const float decay = 0.9995f * expf(g);\n    float S_k",
        ("per_op",),
    ),
    Fault("decay 0.99999 times the right one", "delta_rule.cuh", DECAY, DECAY.replace("expf(g)", "0.99999f * expf(g)")),
    Fault("epsilon of the L2 norm 300 times too large", "dims.cuh", "l2_norm_eps = 1e-6f", "l2_norm_eps = 3e-4f", ALL),
    Fault("epsilon of the L2 norm twice the right one", "dims.cuh", "l2_norm_eps = 1e-6f", "l2_norm_eps = 2e-6f", ALL),
    Fault(
        "epsilon of the norms 300 times too large", "dims.cuh", "static_cast<float>(RMS_NORM_EPS)",
        "300.0f * static_cast<float>(RMS_NORM_EPS)", ALL, model="tiny",
    ),
    Fault(
        "correction of o 0.01 % too large", "delta_rule.cuh",
        "fmaf(delta, shared->k_dot_q,", "fmaf(1.0001f * delta, shared->k_dot_q,",
    ),
    Fault(
        "a quarter of the recurrent state kept in TF32", "delta_rule.cuh", f"        s[i].w = {LAST_COLUMN};",
        f"        s[i].w = {LAST_COLUMN};\n"
        "        s[i].w = __uint_as_float((__float_as_uint(s[i].w) + 0x1000u) & 0xffffe000u);",
    ),
    Fault("beta 0.01 % too small", "phases.cuh", "b_row] = sigmoid(value)", "b_row] = 0.9999f * sigmoid(value)"),
    Fault(
        "conv_state kept in bf16", "causal_conv.cuh",
        "state[conv_kernel - 2] = x;", "state[conv_kernel - 2] = to_float(to_bf16(x));", ALL,
    ),
    Fault("silu a little off", "activations.cuh", "return x * sigmoid(x);", "return x * sigmoid(1.0001f * x);", ALL),
    Fault(
        "gated norm's output kept in bf16", "phases.cuh",
        "shared->x[staged(at + i)] = y; });", "shared->x[staged(at + i)] = to_float(to_bf16(y)); });",
    ),
    Fault(
        "residual kept in bf16", "matvec.cuh",
        "out[row] = before + sum[0];", "out[row] = to_float(to_bf16(before + sum[0]));",
    ),
    Fault(
        "weights of the norms rounded to bf16", "rms_norm.cuh",
        "(1.0f + weight[c])", "(1.0f + to_float(to_bf16(weight[c])))", ALL,
    ),
    Fault(
        "one row of the head is its neighbour's", "phases.cuh", "logits[row + lane_id()] = logit;",
        "logits[row + lane_id()] = row == 6 ? sum[0] : logit;",
    ),
    Fault(
        "one row of the head from weights of a step ago", "phases.cuh", "logits[row + lane_id()] = logit;",
        "logits[row + lane_id()] = row + lane_id() == 7 ? logit * 1.002f : logit;",
    ),
    Fault(
        "one row of up_proj from weights of a step ago", "phases.cuh", "act[row] = silu(sum[0]) * sum[1];",
        "act[row] = silu(sum[0]) * (row == 5 ? sum[1] * 1.001f : sum[1]);",
    ),
    Fault("RoPE's angle off by 1e-3", "rope.cuh", TURNED, TURNED_TOO_FAR, ALL),
    Fault(
        "softmax scale off by 0.1 %", "attention.cuh",
        "rsqrtf(static_cast<float>(head_dim))", "1.001f * rsqrtf(static_cast<float>(head_dim))",
    ),
    Fault(
        "cache rounded twice", "attention.cuh", "to_bf16(v);",
        "to_bf16(__uint_as_float((__float_as_uint(v) + 0x1000u) & 0xffffe000u));",
    ),
    Fault(
        "output gate a little off", "attention.cuh",
        "mean[j] * sigmoid(gate[j])", "mean[j] * sigmoid(1.0001f * gate[j])",
    ),
    Fault("ties rounded away from 0", "primitives.cuh", BF16, "(bits + 0x8000u) >> 16", ALL),
    Fault("ties rounded to 0", "primitives.cuh", BF16, "(bits + 0x7fffu) >> 16", ALL),
    Fault("rounded down", "primitives.cuh", BF16, "bits >> 16", ALL),
)  # fmt: skip


def _in_stream(name: str, path: str, old: str, new: str) -> Fault:
    return Fault(f"streaming: {name}", path, old, new, ("streaming",))


def _apart(where: str, path: str, comment: str, barrier: str = "__syncthreads") -> Fault:
    return _in_stream(f"no {barrier} {where}", path, f"{barrier}();  // {comment}", f"// {comment}")


COPY = "copy_16_bytes_once(dynamic_shared_memory + place + 2 * c, next + c, policy)"
PAIR_TAGS = "missing |= tag_of(two[k].first) != tag || tag_of(two[k].second) != tag;"
END_TAGS = "while (tag_of(two.first) != tag || tag_of(two.second) != tag);"
CELL_STORED, CELL_LOADED = "st.relaxed.gpu.global.u32", "ld.relaxed.gpu.global.u32"

# tests/stages/test_streaming.py says which check catches each of them: many need a card with few or many SMs, tokens
# in one launch, or hostile memory.
STREAMING_FAULTS = (
    # Cells
    _in_stream("a cell not compared", "exchange.cuh", "while (cell == empty);", "while (false);"),
    _in_stream("cells of a vector not compared", "exchange.cuh", "any |= is_empty(cells[k]);", ""),
    _in_stream("half of four cells not compared", "exchange.cuh", " || f.z == empty || f.w == empty;", ";"),
    _in_stream("the other copy not emptied", "exchange.cuh", "store_cell(p + to_other, empty);", ""),
    _in_stream("one copy of the cells", "streaming.cu", "is_odd = tag % 2 != 0;", "is_odd = true;"),
    _in_stream("cells stored without an order", "exchange.cuh", CELL_STORED, "st.global.u32"),
    _in_stream("cells for the own block only", "exchange.cuh", CELL_STORED, "st.relaxed.cta.global.u32"),
    _in_stream("cells loaded without an order", "exchange.cuh", CELL_LOADED, "ld.global.u32"),
    # Tagged words
    _in_stream("tags of partial results not compared", "tagged.cuh", PAIR_TAGS, ""),
    _in_stream("tags of a split's ends not compared", "tagged.cuh", END_TAGS, "while (false);"),
    _in_stream(
        "partial results of the token before accepted", "tagged.cuh", PAIR_TAGS,
        "missing |= tag - tag_of(two[k].first) > 1u || tag - tag_of(two[k].second) > 1u;",
    ),
    _in_stream(
        "ends of the token before accepted", "tagged.cuh", END_TAGS,
        "while (tag - tag_of(two.first) > 1u || tag - tag_of(two.second) > 1u);",
    ),
    _in_stream("words stored without an order", "tagged.cuh", "st.relaxed.gpu.global.u64", "st.global.u64"),
    _in_stream("words for the own block only", "tagged.cuh", "st.relaxed.gpu.global.u64", "st.relaxed.cta.global.u64"),
    _in_stream("words loaded without an order", "tagged.cuh", "ld.relaxed.gpu.global.v2.u64", "ld.global.v2.u64"),
    _in_stream(
        "best published without a release", "tagged.cuh", "st.release.gpu.global.u64", "st.relaxed.gpu.global.u64",
    ),
    _in_stream("best read without an acquire", "tagged.cuh", "ld.acquire.gpu.global.u64", "ld.relaxed.gpu.global.u64"),
    _in_stream("every token has the tag of the first", "streaming.cu", "token_of(m, tag + number,", "token_of(m, tag,"),
    _apart("before the token is stored", "streaming.cu", "every lane's acquires come before", "__syncwarp"),
    _apart("after the choice", "streaming.cu", "the choice is in shared memory"),
    # Draws
    _in_stream(
        "no grid barrier after a draw", "streaming.cu", "grid_barrier(m.barrier);  // the draw is in",
        "__syncthreads();  // the draw is in",
    ),
    _in_stream(
        "drawn for the position before", "streaming.cu", "token.position + 1, m.sampling", "token.position, m.sampling",
    ),
    _in_stream("the greedy choice shown to the host", "streaming.cu", "number, drawn);", "number, greedy);"),
    _in_stream("the greedy choice ends a launch of draws", "streaming.cu", "(!DRAWS && is_end(m, chosen))",
               "is_end(m, chosen)"),
    _in_stream("a drawn end ends nothing", "streaming.cu", "choice < 0 || is_end(m, drawn)", "choice < 0"),
    _in_stream("the greedy choice not kept", "streaming.cu", "m.sampling_memory->greedy = greedy;", ";"),
    _in_stream("a bin below the lowest", "sampling.cuh", "= first + i >= 0 ?", "= first + i >= -bins ?"),
    # The ring
    _apart("before a slot is requested again", "weight_stream.cuh", "all lanes have read the slot", "__syncwarp"),
    _in_stream("parity does not flip", "weight_stream.cuh", ", parity ^= 1u;", ";"),
    _in_stream("parity of the second round first", "weight_stream.cuh", "parity = 0, wrap", "parity = 1, wrap"),
    _in_stream("a group of copies too few waited for", "weight_stream.cuh", '"n"(ring_slots - 1)', '"n"(ring_slots)'),
    _in_stream("ring one place too long", "weight_stream.cuh", "if (--wrap == 0)", "if (--wrap < 0)"),
    _in_stream(
        "the next place requested", "weight_stream.cuh",
        "            request(place);\n            step();", "            step();\n            request(place);",
    ),
    _in_stream(
        "no way back to the first slot", "weight_stream.cuh", "next -= static_cast<size_t>(count)", "next -= 0u",
    ),
    _in_stream("copies that nobody requested waited for", "weight_stream.cuh", "left < 0 ? left : 0", "0"),
    _in_stream("a slot copied twice", "weight_stream.cuh", COPY, f"{COPY}, {COPY}"),
    # Products and what is added to them
    _in_stream("early row of block 0", "streaming.cu", "? rows * part.first + r : -1", "? r : -1"),
    _in_stream("residual dropped", "streaming.cu", "(r == early ? before : residual(r)) + sum", "sum"),
    _in_stream("a part of a row skipped", "streaming.cu", "for (int part = 1; part < split; ++part) sum +=",
               "for (int part = 2; part < split; ++part) sum +="),
    _in_stream("sums of a batch overwritten", "streaming.cu", ", turn ^= 1)", ")"),
    _in_stream(
        "squares of the last tile left out", "streaming.cu", "warp_sum(lane_id() < tiles_per_head ?",
        "warp_sum(lane_id() < tiles_per_head - 1 ?",
    ),
    _in_stream(
        "norm of the layer before", "streaming.cu", "l + 1].input_norm : m.norm);\n            deltanet_out",
        "l].input_norm : m.norm);\n            deltanet_out",
    ),
    _in_stream("newest k and v not gathered", "streaming.cu", "(split == splits - 1 ? 2 : 0)", "0"),
    _in_stream(
        "sine of the position before", "streaming.cu",
        "m.rope_sin[row + c - sin]", "m.rope_sin[max_of(row - half, 0) + c - sin]",
    ),
    _in_stream(
        "norms of a later unit not loaded again", "streaming.cu",
        "if (unit != static_cast<int>(blockIdx.x)) store_head_inputs", "if (false) store_head_inputs",
    ),
    _in_stream("row after the vocabulary's last", "streaming.cu", "row < vocab_size", "row <= vocab_size"),
    _in_stream("barriers kept", "streaming.cu", "if constexpr (GRID_BARRIERS)", "if constexpr (true)"),
    # Barriers inside a block
    _apart("after a batch", "streaming.cu", "the sums of this batch are there"),
    _apart("before the delta rule", "streaming.cu", "the inputs are in shared memory"),
    _in_stream(
        "no __syncthreads after a tile", "streaming.cu",
        "squares, token.to_other);\n        });\n        __syncthreads();", "squares, token.to_other);\n        });",
    ),
    _apart("before attention", "streaming.cu", "the heads are in shared memory"),
    _apart("before the best of a block", "streaming.cu", "every warp's best is in shared memory"),
    _apart("after the token", "streaming.cu", "the token is in shared memory, and so are the parts"),
    _apart("after the stream is parked", "streaming.cu", "all lanes find it there", "__syncwarp"),
)  # fmt: skip


def _in_prompts(name: str, path: str, old: str, new: str, length: int = 70) -> Fault:
    return Fault(f"prompt: {name}", path, old, new, ("prefill",), length)


def _unsynchronised(where: str, path: str, comment: str, barrier: str = "__syncthreads", length: int = 70) -> Fault:
    return _in_prompts(f"no {barrier} in {where}", path, f"{barrier}();  // {comment}", f"// {comment}", length)


# A prompt of 70 has two chunks of the delta rule; one of 300 has many rows with more than one tile of keys per warp.
PREFILL_FAULTS = (
    # The delta rule inside a chunk
    _in_prompts(
        "decay left out of the products", "delta_rule_chunk.cuh",
        "expf(sees ? shared->G[i] - shared->G[j] : 0.0f) * product[tile].x[x]", "product[tile].x[x]",
    ),
    _in_prompts(
        "decay up to the token before", "delta_rule_chunk.cuh",
        "= {before + g[0], sum};", "= {before, before + g[0]};",
    ),
    _in_prompts("a token sees the next one", "delta_rule_chunk.cuh", "sees = j <= i;", "sees = j <= i + 1;"),
    _in_prompts("beta left out of the system", "delta_rule_chunk.cuh", "beta = shared->beta[i];", "beta = 1.0f;"),
    _in_prompts("T without beta", "delta_rule_chunk.cuh", "i == column ? shared->beta[column]", "i == column ? 1.0f"),
    _in_prompts("the system's diagonal counted", "delta_rule_chunk.cuh", "4 * four + 0 > j", "4 * four + 0 >= j"),
    _in_prompts(
        "rows past the prompt taken for tokens", "delta_rule_chunk.cuh",
        "token + i >= tokens", "token + i >= chunk_tokens",
    ),
    # ... and from chunk to chunk
    _in_prompts("state not decayed over a chunk", "delta_rule_chunk.cuh", "s *= decay;", "s *= 1.0f;"),
    _in_prompts(
        "corrections not decayed to the chunk's end", "delta_rule_chunk.cuh", "&shared->delta_at_end[block]",
        "&shared->delta[block]",
    ),
    _in_prompts(
        "k and q read a state not decayed", "delta_rule_chunk.cuh", "= expf(G_row[x / 2]) * (", "= (",
    ),
    _in_prompts(
        "state of the wrong key head", "delta_rule_chunk.cuh",
        "head / value_heads_per_key;\n    S += first", "head % num_key_heads;\n    S += first",
    ),
    # The convolution
    _in_prompts(
        "conv_state one token late", "causal_conv_sequence.cuh", "t = length - history + j;",
        "t = length - history + j - 1;",
    ),
    _in_prompts(
        "q not scaled", "causal_conv_sequence.cuh",
        "head < num_key_heads ? rsqrtf(static_cast<float>(key_head_dim)) : 1.0f", "1.0f",
    ),
    _in_prompts("padding of keys not zero", "causal_conv_sequence.cuh", "if (c < width && t", "if (c < dim && t"),
    # Attention
    _in_prompts("mask one key too far", "causal_attention.cuh", ">= visible[half]) score", "> visible[half]) score"),
    _in_prompts(
        "tokens before the piece not seen", "causal_attention.cuh", "a.position + there + 1;", "there + 1;",
    ),
    _in_prompts(
        "old sums not rescaled", "causal_attention.cuh", "const float old = expf(soft.maximum[half] - maximum);",
        "const float old = 1.0f;", 300,
    ),
    _in_prompts(
        "wrong query head", "causal_attention.cuh",
        "kv_head * heads_per_kv + row % heads_per_kv", "row % heads_per_kv * num_key_value_heads + kv_head",
    ),
    # Rows and positions
    _in_prompts(
        "hidden state of the first row", "prefill.cu", "is_layer_end && row == segment.length - 1",
        "is_layer_end && row == 0",
    ),
    _in_prompts(
        "RoPE from position 0 in each piece", "prefill.cu", "const size_t angles = static_cast<size_t>(position)",
        "const size_t angles = static_cast<size_t>(row)",
    ),
    # Barriers
    _unsynchronised("prepare, after the gates", "delta_rule_chunk.cuh", "beta and G are in shared memory"),
    _unsynchronised("prepare, after the products", "delta_rule_chunk.cuh", "the products of k are in shared memory"),
    _unsynchronised("scan, after the state", "delta_rule_chunk.cuh", "S is in shared memory"),
    _unsynchronised("scan, after r", "delta_rule_chunk.cuh", "r is in shared memory"),
    _unsynchronised("scan, after the corrections", "delta_rule_chunk.cuh", "the corrections are in shared memory"),
    _unsynchronised("attention, after k", "causal_attention.cuh", "k is in shared memory"),
    _unsynchronised("attention, after v", "causal_attention.cuh", "v is in shared memory"),
    _in_prompts(
        "a copy to shared memory not waited for", "primitives.cuh", 'asm volatile("cp.async.wait_all;"',
        'asm volatile("cp.async.commit_group;"',
    ),
    _unsynchronised("attention_prepare", "prefill.cu", "RoPE reads what other lanes wrote", "__syncwarp"),
)  # fmt: skip


SMALL_PREFILL_FAULTS = (
    _in_prompts(
        "decay 0.9995 times the right one", "delta_rule_chunk.cuh",
        "fmaxf(log_decay(", "fmaxf(-5e-4f + log_decay(",
    ),
    _in_prompts("epsilon of the L2 norm 300 times too large", "dims.cuh", "l2_norm_eps = 1e-6f", "l2_norm_eps = 3e-4f"),
    _in_prompts("beta 0.01 % too small", "delta_rule_chunk.cuh", "beta[i] = sigmoid(", "beta[i] = 0.9999f * sigmoid("),
    _in_prompts(
        "TF32 cut off in place of rounded", "tensor_core.cuh",
        'asm("cvt.rna.tf32.f32 %0, %1;"', 'asm("and.b32 %0, %1, 0xffffe000;"',
    ),
    _in_prompts(
        "corrections rounded to bf16", "delta_rule_chunk.cuh",
        "= to_tf32(delta);", "= to_float(to_bf16(delta));",
    ),
    _in_prompts(
        "state decayed 0.1 % too much over a chunk", "delta_rule_chunk.cuh",
        "s *= decay;", "s *= 0.999f * decay;",
    ),
    _in_prompts(
        "weights of the softmax cut to bf16", "causal_attention.cuh",
        "parts[1].x[i] = upper_halves(two[0] - even(upper), two[1] - odd(upper));", "parts[1].x[i] = 0u;",
    ),
    _in_prompts("softmax scale off by 0.1 %", "prefill.cu", "is_k ? 1.0f : rsqrtf(", "is_k ? 1.0f : 1.001f * rsqrtf("),
    _in_prompts("RoPE's angle off by 1e-3", "rope.cuh", TURNED, TURNED_TOO_FAR),
    _in_prompts(
        "output gate a little off", "causal_attention.cuh",
        "sigmoid(even(gates[i]))", "sigmoid(1.003f * even(gates[i]))",
    ),
    _in_prompts("silu a little off", "activations.cuh", "return x * sigmoid(x);", "return x * sigmoid(1.001f * x);"),
    _in_prompts(
        "residual kept in bf16", "prefill.cu", "return float4{before.x + more.x, before.y + more.y,",
        "return float4{to_float(to_bf16(before.x + more.x)), to_float(to_bf16(before.y + more.y)),",
    ),
    _in_prompts(
        "gated norm's weight rounded to bf16", "prefill.cu",
        "value * with.weight * silu(with.z)", "value * to_float(to_bf16(with.weight)) * silu(with.z)",
    ),
    _in_prompts("bf16 cut off in place of rounded", "tensor_core.cuh", "cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32"),
)  # fmt: skip
