"""The loader maps the bits of a file without a copy, and refuses a damaged file with its name.

test_checkpoint.py has wrong tensors, and the layouts of other projects.
"""

import json
import math
import os
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from luce_edu.config import ModelConfig
from luce_edu.errors import CheckpointError
from luce_edu.weights import (
    SIDE_BY_SIDE,
    Weights,
    as_one_matrix,
    expected_tensors,
    load_weights,
    random_weights,
    stand_side_by_side,
)

# Both layer types, grouped heads in both, odd-looking sizes; small enough to write in milliseconds.
TOY = {
    "model_type": "qwen3_5_text", "vocab_size": 67, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}  # fmt: skip
CONFIG = ModelConfig.from_dict(TOY)
UNTIED = ModelConfig.from_dict(TOY | {"tie_word_embeddings": False})
QKV = "model.layers.0.linear_attn.in_proj_qkv.weight"


def tensors_of(config=CONFIG, dtype=torch.bfloat16):
    """The tensors of a text-only checkpoint, all in dtype."""
    return {name: tensor.to(dtype) for name, tensor in random_weights(config, seed=1).named_tensors()}


def wrapped(tensors):
    """The tensors in the vision-language layout, with others that the text model does not use."""
    result = {"model.visual.patch_embed.weight": torch.ones(3, 5), "mtp.norm.weight": torch.ones(7)}
    for name, tensor in tensors.items():
        result[name.replace("model.", "model.language_model.", 1)] = tensor
    return result


def save_shards(folder, *shards):
    """Write shards and their index, with names as on the hub."""
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model.safetensors-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_raw(path, header, data=b"", length=None):
    """Write a safetensors file by hand, with any header, and perhaps a wrong length of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def assert_same_bits(weights: Weights, stored: dict):
    loaded = dict(weights.named_tensors())
    assert loaded.keys() == stored.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == (torch.bfloat16 if stored[name].dim() == 2 else torch.float32), name
        assert torch.equal(tensor, stored[name].to(tensor.dtype)), name


def test_expected_tensors_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    for config, content in ((CONFIG, TOY), (UNTIED, TOY | {"tie_word_embeddings": False})):
        with torch.device("meta"):
            model = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**content))
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert expected_tensors(config) == shapes


def test_weights_equal_those_that_transformers_loads(tmp_path):
    transformers = pytest.importorskip("transformers")
    save_file(tensors_of(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(TOY))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_bits(load_weights(tmp_path, CONFIG), dict(model.named_parameters()))


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", [dict, wrapped], ids=["text", "wrapper"])
@pytest.mark.parametrize("num_shards", [0, 1, 3])
def test_loads_the_stored_bits_from_every_layout(tmp_path, config, layout, num_shards):
    stored = tensors_of(config)
    content = layout(stored)
    if num_shards:
        names = list(content)
        shards = [{name: content[name] for name in names[i::num_shards]} for i in range(num_shards)]
        save_shards(tmp_path, *shards)
    else:
        save_file(content, tmp_path / "model.safetensors")
    weights = load_weights(tmp_path, config)
    assert_same_bits(weights, stored)
    assert (weights.lm_head is weights.embed_tokens) == config.tie_word_embeddings


def test_bit_comparison_catches_one_wrong_bit(tmp_path):
    stored = tensors_of()
    save_file(stored, tmp_path / "model.safetensors")
    stored[QKV].view(torch.int16)[-1, -1] ^= 1
    with pytest.raises(AssertionError, match="in_proj_qkv"):
        assert_same_bits(load_weights(tmp_path, CONFIG), stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_are_rounded_to_bf16_where_matrices_and_kept_elsewhere(tmp_path, dtype):
    stored = tensors_of(dtype=dtype)
    stored[QKV] = torch.full_like(stored[QKV], 1 + 2**-8 + 2**-10)  # nearer to 1 + 2**-7 than to 1
    stored["model.norm.weight"] = torch.full_like(stored["model.norm.weight"], 1 + 2**-10)
    save_file(stored, tmp_path / "model.safetensors")
    weights = load_weights(tmp_path, CONFIG)
    assert_same_bits(weights, stored)
    assert (weights.layers[0]["linear_attn.in_proj_qkv.weight"] == 1 + 2**-7).all()
    assert (weights.norm == 1 + 2**-10).all()


def save_aligned(folder, tensors, offset):
    """Write two shards: in the first every tensor starts at `offset` modulo 16 in the file, and so in memory.

    Returns the first shard's tensors in their order, with no gaps between them.
    """
    even = {name: tensor for name, tensor in tensors.items() if tensor.nbytes % 16 == 0}
    rest = {name: tensor for name, tensor in tensors.items() if name not in even}
    entries, data = {}, b""
    for name, tensor in even.items():
        begin = len(data)
        data += tensor.view(torch.uint8).numpy().tobytes()
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(entries).encode()
    text += b" " * ((offset - 8 - len(text)) % 16)
    save_shards(folder, even, rest)
    save_raw(folder / "model.safetensors-00001-of-00002.safetensors", text, data)
    return even


def distinct_mappings(weights, even):
    """The number of memory blocks that hold the first shard's matrices: one, unless some were copied."""
    loaded, position, starts = dict(weights.named_tensors()), 0, set()
    for name, tensor in even.items():
        if tensor.dim() == 2:
            starts.add(loaded[name].data_ptr() - position)
        position += tensor.nbytes
    return len(starts)


def test_aligned_bf16_matrices_are_views_of_one_mapping(tmp_path):
    even = save_aligned(tmp_path, tensors_of(), offset=0)
    assert distinct_mappings(load_weights(tmp_path, CONFIG), even) == 1


@pytest.mark.parametrize("offset", [2, 8])
def test_misaligned_matrices_are_copied_to_start_on_16_bytes(tmp_path, offset):
    stored = tensors_of()
    even = save_aligned(tmp_path, stored, offset)
    weights = load_weights(tmp_path, CONFIG)
    assert_same_bits(weights, stored)
    assert distinct_mappings(weights, even) > 1
    for name, tensor in weights.named_tensors():
        assert tensor.data_ptr() % 16 == 0, name


def test_writing_to_a_loaded_tensor_works_without_a_warning_and_leaves_the_file_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TOY))
    save_aligned(tmp_path, tensors_of(), offset=0)  # so that the tensors are mapped and not copied
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    # In a process of its own: torch warns only once about a read-only buffer, and a write to it ends the process.
    script = (
        "import sys, warnings; from luce_edu.models import load_model; warnings.simplefilter('error'); "
        "weights = load_model(sys.argv[1]).weights; "
        "print(sum(tensor.zero_().count_nonzero() for _, tensor in weights.named_tensors()))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tensor(0)"
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def private_bytes():
    """Private memory of this process, in bytes. Pages of a mapped file count only once they are written."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_loading_takes_less_memory_than_a_tenth_of_the_file(tmp_path):
    content = TOY | {"vocab_size": 16384, "hidden_size": 1024}
    config = ModelConfig.from_dict(content)
    tensors = tensors_of(config)
    # The data may start at a multiple of 16 bytes or 8 bytes after one. The metadata moves it by 8.
    path = tmp_path / "model.safetensors"
    for pad in ("", "12345678"):
        save_file(tensors, path, metadata={"pad": pad})
        if int.from_bytes(path.read_bytes()[:8], "little") % 16 == 8:
            break
    del tensors
    before = private_bytes()
    weights = load_weights(tmp_path, config)
    assert weights.embed_tokens.sum().isfinite()  # reads every page of the mapping
    assert private_bytes() - before <= 0.1 * path.stat().st_size


def test_to_keeps_the_head_tied_and_num_bytes_counts_it_once():
    tied, untied = random_weights(CONFIG).to("cpu"), random_weights(UNTIED).to("cpu")
    assert tied.lm_head is tied.embed_tokens
    assert untied.lm_head is not untied.embed_tokens
    assert untied.num_bytes - tied.num_bytes == tied.embed_tokens.nbytes == 67 * 48 * 2
    shapes = expected_tensors(CONFIG).values()
    assert tied.num_bytes == sum(math.prod(shape) * (2 if len(shape) == 2 else 4) for shape in shapes)
    moved = tied.to("meta")
    assert moved.lm_head is moved.embed_tokens
    assert all(tensor.is_meta for _, tensor in moved.named_tensors())


# safetensors checks the header; each kind of its errors must become ours. Rows: header and data, or all bytes.
HEADER = {"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
BAD_FILES = {
    "empty": (b"",), "header_longer_than_file": (b"{}", b"", 3), "header_is_not_json": (b"{]", b""),
    "offsets_past_the_end": (HEADER, bytes(7)),
}  # fmt: skip


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_damaged_file_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(*content) if len(content) == 1 else save_raw(path, *content)
    with pytest.raises(CheckpointError, match="download it again") as error:
        load_weights(tmp_path, CONFIG)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0.001, 0.02, 0.5, 0.9999])
def test_truncated_file_is_refused_at_any_length(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_file(tensors_of(), path)
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.raises(CheckpointError, match="model.safetensors: "):
        load_weights(tmp_path, CONFIG)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: expected a checkpoint folder"):
        load_weights(tmp_path / "nowhere", CONFIG)


def test_tensor_in_two_shards_is_refused(tmp_path):
    tensors = tensors_of()
    save_shards(tmp_path, tensors, {QKV: tensors[QKV]})
    with pytest.raises(CheckpointError, match=f"{QKV}: .*00001-of.*00002-of"):
        load_weights(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 1}}', '{"weight_map": {"x": "../a"}}']
)
def test_bad_index_is_named(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="model.safetensors.index.json"):
        load_weights(tmp_path, CONFIG)


def test_random_weights_repeat_for_a_seed_and_differ_between_seeds():
    first, again, other = (dict(random_weights(CONFIG, seed).named_tensors()) for seed in (3, 3, 4))
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == expected_tensors(CONFIG)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        assert name.endswith("dt_bias") or not torch.equal(tensor, other[name]), name


def test_random_weights_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = random_weights(CONFIG).embed_tokens
        torch.set_num_threads(3)
        three = random_weights(CONFIG).embed_tokens
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, three)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "0", None, True])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed: expected an integer"):
        random_weights(CONFIG, seed)


def activation_ranges(weights, config):
    """RMS of the residual stream after each layer, and the std of the logits."""
    from luce_edu.reference.model import forward

    tokens = torch.randint(config.vocab_size, (64,), generator=torch.Generator().manual_seed(0))
    trace = []
    with torch.inference_mode():
        logits = forward(weights, config, tokens, trace=trace)
    return torch.stack([x.pow(2).mean().sqrt() for x in trace[1:]]), logits.std()


def assert_in_trained_range(weights, config):
    residual_rms, logits_std = activation_ranges(weights, config)
    assert residual_rms.isfinite().all() and logits_std.isfinite()
    # In a trained model, the stream grows a few times over all layers, and the logits' std is a few units.
    assert residual_rms[-1] >= 1 and residual_rms.max() <= 4, residual_rms
    assert 1 <= logits_std <= 5, logits_std


DEEP = ModelConfig.from_dict(TOY | {"num_hidden_layers": 24, "hidden_size": 128, "intermediate_size": 320})


def test_random_activations_stay_in_a_trained_range_through_24_layers():
    assert_in_trained_range(random_weights(DEEP), DEEP)


@pytest.mark.parametrize("factor", [0.0, 8.0, float("nan")])
def test_range_check_rejects_badly_scaled_weights(factor):
    weights = random_weights(DEEP)
    for layer in weights.layers:
        for name in layer:
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                layer[name] = layer[name] * factor
    with pytest.raises(AssertionError):
        assert_in_trained_range(weights, DEEP)


def test_random_heads_forget_at_rates_from_a_half_to_a_thousandth():
    config = ModelConfig.from_dict(TOY | {"linear_num_value_heads": 16})
    dt_bias = random_weights(config).layers[0]["linear_attn.dt_bias"]
    decay = torch.exp(-torch.nn.functional.softplus(dt_bias))
    assert decay.isfinite().all()
    assert (decay[0] - 0.5).abs() <= 1e-5 and (decay[-1] - 0.999).abs() <= 1e-5
    assert (decay.diff() > 0).all()


# ---- Matrices with the same input ----


def groups_of(layer):
    return [[layer[name] for name in group] for group in SIDE_BY_SIDE if group[0] in layer]


def test_matrices_with_the_same_input_are_moved_side_by_side_with_the_same_values():
    for layer in random_weights(CONFIG, seed=1).layers:
        moved = stand_side_by_side(layer)
        assert moved.keys() == layer.keys() and all(torch.equal(moved[name], layer[name]) for name in layer)
        assert len(groups_of(layer)) == 2, "one of the mixer, one of the MLP"
        for group in groups_of(moved):
            whole = as_one_matrix(group)
            assert torch.equal(whole, torch.cat(group)) and whole.data_ptr() == group[0].data_ptr()
            assert all(matrix.is_contiguous() for matrix in group)
        in_groups = {name for group in SIDE_BY_SIDE for name in group}
        assert all(moved[name] is layer[name] for name in layer.keys() - in_groups)
        assert all(as_one_matrix(group) is None for group in groups_of(layer)), "the given layer does not change"


def test_weights_stay_where_they_are_on_their_own_device_and_stand_side_by_side_on_another():
    weights = random_weights(CONFIG, seed=1)
    own, other = weights.to("cpu"), weights.to("meta")
    for layer, same, moved in zip(weights.layers, own.layers, other.layers, strict=True):
        assert all(same[name] is layer[name] for name in layer)
        for group in groups_of(moved):
            assert as_one_matrix(group).shape == (sum(len(matrix) for matrix in group), CONFIG.hidden_size)
    assert other.num_bytes == weights.num_bytes and other.lm_head is other.embed_tokens


def apart():
    whole = torch.arange(60.0).view(10, 6)
    return {
        "other memory": [whole[:4], whole[4:].clone()],
        "wrong order": [whole[4:], whole[:4]],
        "a gap": [whole[:4], whole[5:]],
        "an overlap": [whole[:4], whole[3:]],
        "columns of a wider matrix": [whole[:, :3], whole[:, 3:]],
        "transposed": [whole[:5].T, whole[5:].T],
    }


@pytest.mark.parametrize("case", apart())
def test_matrices_that_are_not_side_by_side_are_not_one_matrix(case):
    assert as_one_matrix(apart()[case]) is None


def test_one_matrix_and_rows_of_a_larger_one_are_one_without_a_copy():
    whole = torch.arange(60.0).view(10, 6)
    for parts, expected in (([whole], whole), ([whole[2:3], whole[3:7], whole[7:9]], whole[2:9])):
        together = as_one_matrix(parts)
        assert torch.equal(together, expected) and together.data_ptr() == expected.data_ptr()
