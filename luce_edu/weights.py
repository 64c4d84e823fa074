"""The weights of a model: the tensors that its config requires, read from safetensors or drawn at random."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from luce_edu.checkpoint import check_start, safetensors_files
from luce_edu.config import BF16_COPY, LINEAR_ATTENTION, ModelConfig
from luce_edu.errors import CheckpointError, check_seed

_DTYPES = ("BF16", "F16", "F32", "F64")  # dtypes in which a text tensor may be stored, by safetensors' names
_ALIGNMENT = 16  # bytes, because kernels load 16 bytes of weights at a time
# Prefixes under which transformers finds a text tensor: none, model., language_model., model.language_model.,
# model.model.
_PREFIX = re.compile(r"(model\.)?((language_)?model\.)?")
# Tensors that are not read: the vision tower, the multi-token prediction head, and RoPE's table in old checkpoints.
_IGNORED = re.compile(r"visual\.|mtp\.|.*\.rotary_emb\.inv_freq$")
# Prefixes of checkpoints that were saved in other ways, and what to do about each.
_FOREIGN = {
    "base_model.model.": "PEFT's, where the adapter is separate: merge it (merge_and_unload) and save the result",
    "language_model.model.": "MLX's, which stores norms and convolutions in another way: take the original checkpoint",
    "module.": "DistributedDataParallel's: save model.module",
    "_orig_mod.": "torch.compile's: save the model that was compiled",
}
# How the names of quantised tensors and their scales end in GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, HQQ,
# AQLM, MLX and ModelOpt.
_QUANTISED = re.compile(
    r"(.*\.)?(qweight|qzeros|scales|biases|g_idx|W_q|SCB|codes|codebooks|weight_(packed|shape|g_idx|format)"
    r"|.*(absmax|quant_map|quant_state\..*|_scale|_scale_inv|_scale_2|_zero_point))"
)
_SAME = "take the weights and their own config.json, in transformers' layout"


@dataclass
class Weights:
    """The text model's tensors, all on one device.

    embed_tokens  [vocab_size, hidden_size] bf16
    norm          [hidden_size] fp32, the final norm, zero-centred
    lm_head       [vocab_size, hidden_size] bf16; the same tensor object as embed_tokens if the two are tied
    layers        for each layer a dict from the name after `model.layers.N.` to the tensor. Matrices are
                  bf16; norms, A_log, dt_bias and conv1d.weight [conv_dim, 1, kernel] are fp32, which represents
                  every bf16 and fp16 value exactly
    """

    embed_tokens: torch.Tensor
    norm: torch.Tensor
    lm_head: torch.Tensor
    layers: list[dict[str, torch.Tensor]]

    @classmethod
    def from_named(cls, tensors: dict[str, torch.Tensor], config: ModelConfig) -> Weights:
        """Make Weights from tensors by name; the names are those of `expected_tensors(config)`."""
        layers = []
        for i in range(config.num_hidden_layers):
            prefix = f"model.layers.{i}."
            layers.append({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        embed_tokens = tensors["model.embed_tokens.weight"]
        lm_head = tensors.get("lm_head.weight", embed_tokens)
        return cls(embed_tokens, tensors["model.norm.weight"], lm_head, layers)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor once, with its name in a text-only checkpoint."""
        yield "model.embed_tokens.weight", self.embed_tokens
        for i, layer in enumerate(self.layers):
            for name, tensor in layer.items():
                yield f"model.layers.{i}.{name}", tensor
        yield "model.norm.weight", self.norm
        if self.lm_head is not self.embed_tokens:
            yield "lm_head.weight", self.lm_head

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes; a tied head counts once."""
        return sum(tensor.nbytes for _, tensor in self.named_tensors())

    def to(self, device: torch.device | str) -> Weights:
        """Return the same weights on a device; a tied head stays tied.

        If that takes a copy, matrices with the same input are placed side by side in memory (`SIDE_BY_SIDE`).
        """
        embed_tokens = self.embed_tokens.to(device)
        tied = self.lm_head is self.embed_tokens
        layers = []
        for layer in self.layers:
            moved = {name: tensor.to(device) for name, tensor in layer.items()}
            layers.append(moved if all(moved[name] is layer[name] for name in layer) else stand_side_by_side(moved))
        return Weights(
            embed_tokens=embed_tokens,
            norm=self.norm.to(device),
            lm_head=embed_tokens if tied else self.lm_head.to(device),
            layers=layers,
        )


# Matrices of a layer that multiply the same vectors. One after the other in memory, they can be used as one matrix.
SIDE_BY_SIDE = (
    ("linear_attn.in_proj_qkv.weight", "linear_attn.in_proj_z.weight",
     "linear_attn.in_proj_b.weight", "linear_attn.in_proj_a.weight"),
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
)  # fmt: skip


def stand_side_by_side(layer: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy each group of SIDE_BY_SIDE into one piece of memory; return the layer with views of it."""
    layer = dict(layer)
    for group in SIDE_BY_SIDE:
        if group[0] in layer:
            together = torch.cat([layer[name] for name in group])
            layer |= zip(group, together.split([len(layer[name]) for name in group]), strict=True)
    return layer


def as_one_matrix(matrices: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return matrices [rows, columns] as one matrix, without a copy; None if they are not side by side in memory."""
    first = matrices[0]
    offset, rows = first.storage_offset(), 0
    for matrix in matrices:
        same = matrix.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not matrix.is_contiguous() or matrix.storage_offset() != offset + rows * first.shape[1]:
            return None
        rows += len(matrix)
    return first.as_strided((rows, first.shape[1]), first.stride())


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the text model needs, named as in a text-only checkpoint.

    Source: transformers' Qwen3_5ForCausalLM; compared with it in tests/test_weights.py.
    """
    embedding = (config.vocab_size, config.hidden_size)
    tensors = {"model.embed_tokens.weight": embedding}
    for i, kind in enumerate(config.layer_types):
        mixer = _delta_net_shapes(config) if kind == LINEAR_ATTENTION else _attention_shapes(config)
        for name, shape in (mixer | _block_shapes(config)).items():
            tensors[f"model.layers.{i}.{name}"] = shape
    tensors["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = embedding
    return tensors


def _delta_net_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    return {
        "linear_attn.in_proj_qkv.weight": (config.conv_dim, hidden),
        "linear_attn.in_proj_z.weight": (config.value_dim, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
        "linear_attn.conv1d.weight": (config.conv_dim, 1, config.linear_conv_kernel_dim),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (config.linear_value_head_dim,),
        "linear_attn.out_proj.weight": (hidden, config.value_dim),
    }


def _attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, head_dim = config.hidden_size, config.head_dim
    q_dim, kv_dim = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    return {
        "self_attn.q_proj.weight": (2 * q_dim, hidden),  # per head: the query's rows, then the output gate's
        "self_attn.k_proj.weight": (kv_dim, hidden),
        "self_attn.v_proj.weight": (kv_dim, hidden),
        "self_attn.q_norm.weight": (head_dim,),
        "self_attn.k_norm.weight": (head_dim,),
        "self_attn.o_proj.weight": (hidden, q_dim),
    }


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }


@dataclass(frozen=True)
class _Entry:
    """A tensor in an open safetensors file, as its header describes it; not read yet."""

    name: str  # in the file, with its prefix
    path: Path
    file: safe_open
    dtype: str
    shape: tuple[int, ...]


def load_weights(folder: str | Path, config: ModelConfig) -> Weights:
    """Read the text model from a checkpoint folder without copying it.

    Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names. Tensors may have any prefix that
    transformers accepts: `model.language_model.` (vision-language models), `model.` (text only) or none.
    bf16 matrices are views into the mapped files, or copies if they are not aligned to 16 bytes. Matrices of other
    dtypes are rounded to bf16, one at a time. The mapping is private: writing to a tensor does not change the file.
    If a tied checkpoint holds a head that differs from the embedding, the head is used, as in transformers.
    Raises CheckpointError, naming the file or tensor, for anything missing, damaged, misshapen, quantised or unknown,
    and for a value that is not finite. Warns if the norms look as if they were saved for a factor of w, not 1 + w.
    """
    entries: dict[str, _Entry] = {}
    for path in safetensors_files(Path(folder)):
        for entry in _open(path):
            bare = entry.name[_PREFIX.match(entry.name).end() :]
            if _IGNORED.match(bare):
                continue
            name = bare if bare == "lm_head.weight" else f"model.{bare}"
            if name in entries:
                raise CheckpointError(f"{name}: found twice, in {entries[name].path} and in {path}")
            entries[name] = entry
            _check_kind(entry)

    expected = expected_tensors(config)
    if "lm_head.weight" in entries:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    _check_entries(entries, expected)
    tensors = {name: _read_tensor(entries[name], len(shape)) for name, shape in expected.items()}
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        if torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            del tensors["lm_head.weight"]
    _warn_of_shifted_norms(folder, tensors)
    return Weights.from_named(tensors, config)


def _check_kind(entry: _Entry) -> None:
    """Raise CheckpointError if a tensor's name shows a quantised checkpoint or one of another project."""
    if _QUANTISED.fullmatch(entry.name):
        raise CheckpointError(f"{entry.name}: in {entry.path}: {BF16_COPY}")
    for prefix, remedy in _FOREIGN.items():
        if entry.name.startswith(prefix):
            raise CheckpointError(f"{entry.name}: in {entry.path}: the prefix {prefix!r} is {remedy}")


def _open(path: Path) -> list[_Entry]:
    """List the tensors of a safetensors file. The library maps it and refuses a header that does not fit the data."""
    try:
        check_start(path)
        file = safe_open(path, framework="pt")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); download it again, or save it again if it was made here"
        ) from error
    slices = {name: file.get_slice(name) for name in file.keys()}
    return [_Entry(name, path, file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]


def _check_entries(entries: dict[str, _Entry], expected: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in entries]
    # An unknown tensor means that config and checkpoint do not match, for instance in the number of layers.
    unknown = [name for name in entries if name not in expected]
    if missing:
        instead = ""
        if unknown:
            first = entries[unknown[0]]
            instead = f"; there is {first.name} {list(first.shape)}, which does not belong to this config"
        elif missing == ["lm_head.weight"]:
            instead = "; the config does not tie it to the embedding (tie_word_embeddings)"
        raise CheckpointError(
            f"{missing[0]}: missing from the checkpoint ({len(missing)} of {len(expected)} tensors are missing)"
            f"{instead}; {_SAME}"
        )
    if unknown:
        raise CheckpointError(
            f"{unknown[0]}: in {entries[unknown[0]].path}, but it does not belong to this config "
            f"({len(unknown)} such tensors); {_SAME}"
        )
    for name, shape in expected.items():
        entry = entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{name}: expected dtype {', '.join(_DTYPES)}, got {entry.dtype} in {entry.path}; {BF16_COPY}"
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"{name}: expected shape {list(shape)}, got {list(entry.shape)} in {entry.path}; {_SAME}"
            )


def _read_tensor(entry: _Entry, num_dims: int) -> torch.Tensor:
    """Read a matrix as bf16, another tensor as fp32; a view of the mapping unless dtype or alignment needs a copy."""
    tensor = entry.file.get_tensor(entry.name).to(torch.bfloat16 if num_dims == 2 else torch.float32)
    if tensor.data_ptr() % _ALIGNMENT:
        tensor = tensor.clone()
    if not torch.stack(torch.aminmax(tensor)).isfinite().all():  # aminmax returns NaN if there is one
        bad = int(tensor.isfinite().logical_not().sum())
        raise CheckpointError(
            f"{entry.name}: {bad} of {tensor.numel()} values are NaN or infinite as {tensor.dtype} in {entry.path}; "
            "download it again, or take an earlier checkpoint if it was trained here"
        )
    return tensor


def _warn_of_shifted_norms(folder: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Warn if the weights of zero-centred norms are around 1: reference and kernels would agree on a wrong model.

    The factor of a norm is 1 + w, and a trained w has a mean near 0 (-0.02 over Qwen3.6's, by ml-explore/mlx-lm#1623).
    Other projects save the factor itself. A single norm may have a mean of 1, but not half of them.
    """
    norms = [t for name, t in tensors.items() if name.endswith("norm.weight") and "linear_attn" not in name]
    middle = float(torch.stack([norm.mean() for norm in norms]).median())
    if 0.5 <= middle <= 1.5:
        warnings.warn(
            f"{folder}: half of the norms have a mean of {middle:.2f} or more, where one near 0 is expected. They may "
            "have been saved for a factor of w in place of 1 + w, as MLX does; then the model's text is wrong. Take "
            "the original checkpoint, or subtract 1 from them",
            stacklevel=4,
        )


_LOGITS_STD = 2.5  # about the standard deviation of a trained model's logits
_CHUNK = 1 << 22  # elements that are drawn at a time: 16 MB in fp32


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Draw weights of a config's shapes that keep activations in the range of a trained model.

    The output of a norm has RMS 1, so a projection with std 1/sqrt(inputs) gives RMS 1 again. The three projections
    into the residual stream (o_proj, out_proj, down_proj) get half of that std, so that the stream grows slowly. The
    decays of the heads are evenly spaced in log scale: exp(g) is about 0.5 for the first and 0.999 for the last, before
    A_log and the input change it. The distribution is uniform, because that takes one multiplication per number, and an
    activation sums hundreds of them. Raises ValueError for a bad seed.
    """
    generator = torch.Generator().manual_seed(check_seed(seed))
    shapes = expected_tensors(config)
    tensors = {name: _random_tensor(name, shape, generator) for name, shape in shapes.items()}
    return Weights.from_named(tensors, config)


def _random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("dt_bias"):
        # If A_log is 0, softplus(dt_bias) = -g.
        forget = torch.logspace(math.log10(0.5), math.log10(0.001), shape[0], dtype=torch.float64)
        return torch.expm1(-torch.log1p(-forget)).log().float()
    if name.endswith("A_log"):
        return _uniform(shape, 0.5, torch.float32, generator)
    if name.endswith("linear_attn.norm.weight"):
        return 1 + _uniform(shape, 0.1, torch.float32, generator)
    if len(shape) == 1:
        return _uniform(shape, 0.1, torch.float32, generator)  # zero-centred norms: the factor is 1 + w
    if len(shape) == 3:
        return _uniform(shape, shape[-1] ** -0.5, torch.float32, generator)
    gain = 1.0
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        gain = _LOGITS_STD
    elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "in_proj_a.weight")):
        gain = 0.5  # in_proj_a: small enough that the input does not outweigh the spread of dt_bias
    return _uniform(shape, gain * shape[1] ** -0.5, torch.bfloat16, generator)


def _uniform(shape, std: float, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Draw numbers uniform around 0 with this standard deviation, from 16 random bits each."""
    result = torch.empty(math.prod(shape), dtype=dtype)
    scale = std * math.sqrt(3) / 2**15
    for chunk in result.split(_CHUNK):
        bits = torch.empty(-(-chunk.numel() // 4), dtype=torch.int64)  # 64 bits for four numbers
        bits.random_(-(2**63), None, generator=generator)
        chunk.copy_(bits.view(torch.int16)[: chunk.numel()].float().mul_(scale))
    return result.view(shape)
