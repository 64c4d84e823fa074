"""Checkpoints of the kinds that people have: loaded with the logits of transformers, or refused with the cause.

Each row makes a folder from the config and tensors of `tiny`. The rows follow public reports and formats: chat models
of Qwen end a turn by generation_config.json or the tokenizer; MLX, PEFT, GPTQ and others name tensors in their own way;
a clone without Git LFS holds pointers.
"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from luce_edu import weights
from luce_edu.config import ModelConfig
from luce_edu.errors import CheckpointError, ConfigError
from luce_edu.models import DATA, load_model
from luce_edu.reference.model import forward
from luce_edu.stages import decoder
from luce_edu.verification import relative_error
from luce_edu.weights import load_weights

TINY = DATA / "tiny"
CONFIG = json.loads((TINY / "config.json").read_text())
TENSORS = load_file(TINY / "model.safetensors")
EMBEDDING = TENSORS["model.embed_tokens.weight"]
NORM, UP = "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.up_proj.weight"
CONV, QKV = "model.layers.0.linear_attn.conv1d.weight", "model.layers.0.linear_attn.in_proj_qkv.weight"
ROPE = CONFIG["rope_parameters"]
VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 128,
    "num_position_embeddings": 16,
}  # fmt: skip
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3406208\n"
INDEX = "model.safetensors.index.json"
LIMIT = 1e-5  # sums in another order, as in tests/reference/test_tiny.py


class Folder:
    """A checkpoint before it is saved. Rows change config, tensors and other files (None: no file, a Path: a link)."""

    def __init__(self):
        self.config, self.tensors = json.loads(json.dumps(CONFIG)), dict(TENSORS)
        self.files = {"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}'}

    def save(self, path: Path) -> Path:
        shutil.copy(TINY / "tokenizer.json", path)
        (path / "config.json").write_text(json.dumps(self.config))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        for name, content in self.files.items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is None or isinstance(content, Path):
                file.unlink(missing_ok=True)
                if content:
                    file.symlink_to(content)
            elif isinstance(content, bytes):
                file.write_bytes(content)
            else:
                file.write_text(content if isinstance(content, str) else json.dumps(content))
        return path


def folder(tmp_path, *changes) -> Path:
    made = Folder()
    for change in changes:
        change(made)
    return made.save(tmp_path)


def config(*without, **changes):
    """Leave out fields of the text config, and set others."""

    def change(made):
        made.config = {name: value for name, value in made.config.items() if name not in without} | changes

    return change


def wrapper(**fields):
    """Put the config into the vision-language wrapper, with these fields of its own."""

    def change(made):
        made.config = {"model_type": "qwen3_5", "text_config": made.config, "vision_config": VISION} | fields

    return change


def rope(kind, name="rope_type", **parameters):
    return config(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5, name: kind} | parameters)


def renamed(old, new, only=""):
    def change(made):
        names = {name: name.replace(old, new, 1) if only in name else name for name in made.tensors}
        made.tensors = {names[name]: tensor for name, tensor in made.tensors.items()}

    return change


def tensors(changed):
    """Set tensors by name. None removes a tensor, and a function computes it from the old one."""

    def change(made):
        for name, tensor in changed.items():
            made.tensors[name] = tensor(made.tensors[name]) if callable(tensor) else tensor
        made.tensors = {name: tensor for name, tensor in made.tensors.items() if tensor is not None}

    return change


def every(function, part=""):
    def change(made):
        made.tensors |= {name: function(tensor) for name, tensor in made.tensors.items() if part in name}

    return change


def files(contents, **more):
    def change(made):
        made.files |= contents | more

    return change


def one_shard(made):
    """Move the tensors into a shard with an index."""
    name = "model.safetensors-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(made.tensors, name)}
    made.files |= {name: save(made.tensors, {"format": "pt"}), INDEX: index, "model.safetensors": None}


def only(name, content="GGUF"):
    """Replace the safetensors file by weights in another format."""
    return files({"model.safetensors": None, name: content})


# ---- Served ----

TEXT_MODEL, WHOLE_MODEL = "AutoModelForCausalLM", "AutoModelForImageTextToText"
OTHER_HEAD = {"lm_head.weight": EMBEDDING * 0.5}
FLAT = config("rope_parameters", rope_theta=500.0, partial_rotary_factor=0.5)
IN_WRAPPER = renamed("model.", "model.language_model.")
GOOD = {
    "as shipped": [],
    "wrapper": [wrapper(tie_word_embeddings=True), IN_WRAPPER],
    "wrapper around text names": [wrapper()],
    "text config, wrapper's names": [IN_WRAPPER],
    "names without a prefix": [renamed("model.", "")],
    "names with the prefix twice": [renamed("model.", "model.model.")],
    "names of the bare wrapper": [WHOLE_MODEL, wrapper(tie_word_embeddings=True), renamed("model.", "language_model.")],
    "two prefixes": [renamed("model.", "model.language_model.", only="layers.0.")],
    "vision under its present prefix": [wrapper(), IN_WRAPPER, tensors({"model.visual.x": torch.ones(3)})],
    "vision under its old prefix": [wrapper(), IN_WRAPPER, tensors({"visual.x": torch.ones(3)})],
    "multi-token prediction": [tensors({"mtp.norm.weight": torch.ones(3), "mtp.fc.weight": torch.ones(2, 2)})],
    "RoPE's table": [tensors({"model.layers.3.self_attn.rotary_emb.inv_freq": torch.ones(8)})],
    "text_config without model_type": [config("model_type"), wrapper()],
    "fields nobody knows": [config(mamba_ssm_dtype="float32", mtp_num_hidden_layers=1, my_note="x")],
    "RoPE at the top": [FLAT],
    "theta at the top": [config(rope_parameters={"partial_rotary_factor": 0.5}, rope_theta=500.0)],
    "rotary factor at the top": [config(rope_parameters={"rope_theta": 500.0}, partial_rotary_factor=0.5)],
    "RoPE at the top and nested": [config(rope_theta=77.0, partial_rotary_factor=0.25)],
    "RoPE not given": [config("rope_parameters")],
    "rope_parameters null": [config(rope_parameters=None)],
    "only a rotary factor": [config("rope_parameters", partial_rotary_factor=0.5)],
    "rope_scaling null": [config(rope_scaling=None)],
    "rope_scaling empty": [config(rope_scaling={})],
    "rope_scaling replaces rope_parameters": [config(rope_scaling={"type": "default"})],
    "rope_scaling default, RoPE at the top": [FLAT, config(rope_scaling={"type": "default"})],
    "rope_scaling with theta": [config(rope_scaling={"rope_type": "default", "rope_theta": 500.0})],
    "type in place of rope_type": [rope("default", "type")],
    "rope_type goes before type": [rope("default", type="yarn", factor=4.0)],
    "mrope_section": [rope("default", mrope_section=[3, 3, 2], mrope_interleaved=True)],
    "mrope in the wrapper": [wrapper(rope_scaling={"type": "mrope", "mrope_section": [3, 3, 2]})],
    "defaults left out": [config("rms_norm_eps", "max_position_embeddings", "linear_conv_kernel_dim", "hidden_act")],
    "an interval for the layers": [config("layer_types", full_attention_interval=4)],
    "no word on the layers": [config("layer_types")],
    "tied head repeated": [tensors({"lm_head.weight": EMBEDDING.clone()})],
    "tied, with another head": [tensors(OTHER_HEAD)],
    "untied": [config(tie_word_embeddings=False), tensors(OTHER_HEAD)],
    "untied by default": [config("tie_word_embeddings"), tensors(OTHER_HEAD)],
    "untied, names without a prefix": [
        config(tie_word_embeddings=False), renamed("model.", ""), tensors(OTHER_HEAD)
    ],
    "head under the wrapper's prefix": [
        config(tie_word_embeddings=False), tensors({"model.language_model.lm_head.weight": EMBEDDING * 0.5})
    ],
    "tied by the text config only": [wrapper(tie_word_embeddings=False)],
    "tied by the wrapper only": [
        WHOLE_MODEL, config("tie_word_embeddings"), wrapper(tie_word_embeddings=True), IN_WRAPPER
    ],
    "fp32": [every(torch.Tensor.float)],
    "fp64": [every(torch.Tensor.double)],
    "fp16": [every(torch.Tensor.half)],
    "one shard": [one_shard],
    "an index beside the whole": [files({INDEX: {"weight_map": {}}})],
    "no quantisation": [config(quantization_config=None)],
    "end of text outside the vocabulary": [config(eos_token_id=[-1, 999])],
}  # fmt: skip


TOKENS = torch.tensor(list(b"ROMEO:\nBut soft, what light through yonder window breaks?"))


def logits_of(path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an end of text outside the vocabulary; tested below
        model = load_model(path)
    assert model.config.tie_word_embeddings == (model.weights.lm_head is model.weights.embed_tokens)
    return forward(model.weights, model.config, TOKENS)


def transformers_logits(path, kind) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    model, info = getattr(transformers, kind).from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not [name for name in info["missing_keys"] if "visual" not in name], "some weights would be random"
    with torch.no_grad():
        return model(input_ids=TOKENS[None]).logits[0]


@pytest.mark.parametrize("row", GOOD)
def test_what_transformers_loads_has_its_logits_here(tmp_path, row, record_property):
    record_property("counted", "checkpoints with transformers' logits")
    kind, *changes = GOOD[row] if WHOLE_MODEL in GOOD[row] else [TEXT_MODEL, *GOOD[row]]
    path = folder(tmp_path, *changes)
    assert relative_error(logits_of(path), transformers_logits(path, kind)) <= LIMIT


def test_the_comparison_sees_another_theta(tmp_path):
    theirs = transformers_logits(TINY, TEXT_MODEL)
    assert relative_error(logits_of(folder(tmp_path, rope("default", rope_theta=9.9e3))), theirs) > 10 * LIMIT


# ---- End of text ----

NAMED = {"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "d"}'}  # d is byte 100
SPECIAL = {"id": 256, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False,
           "rstrip": False, "normalized": False}  # fmt: skip


def with_special_token(made):
    """Add <|endoftext|> to the tokenizer as id 256, and a row for it to the vocabulary."""
    content = json.loads((TINY / "tokenizer.json").read_text())
    content["added_tokens"] = [*content.get("added_tokens", []), SPECIAL]
    made.files["tokenizer.json"] = content
    made.config["vocab_size"] = 257
    made.tensors["model.embed_tokens.weight"] = torch.cat([EMBEDDING, EMBEDDING[:1]])


STOPS = {
    "none": ([], ()),
    "config": ([config(eos_token_id=5)], (5,)),
    "a list": ([config(eos_token_id=[9, 5])], (5, 9)),
    "wrapper and text config": ([config(eos_token_id=5), wrapper(eos_token_id=[6])], (5, 6)),
    "generation_config": ([files({"generation_config.json": {"eos_token_id": [7, 8]}})], (7, 8)),
    "generation_config null": ([files({"generation_config.json": {"eos_token_id": None}})], ()),
    "tokenizer_config": ([files(NAMED)], (100,)),
    "a token as an object": ([files({"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
                                                              "eos_token": {"content": "e"}}})], (101,)),
    "special_tokens_map": ([files({"special_tokens_map.json": {"eos_token": {"content": "f"}}})], (102,)),
    "a token that is not there": ([files({"special_tokens_map.json": {"eos_token": "<|im_end|>"}})], ()),
    "Qwen's own": ([with_special_token, files({"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"}})],
                   (256,)),
    "Qwen's own, by the model": ([with_special_token, files({"tokenizer_config.json": None})], (256,)),
    "not Qwen's tokenizer": ([with_special_token], ()),
    "all": ([config(eos_token_id=5), files({"generation_config.json": {"eos_token_id": [7, 5]}} | NAMED)],
            (5, 7, 100)),
}  # fmt: skip


@pytest.mark.parametrize("row", STOPS)
def test_ends_of_text_come_from_every_file(tmp_path, row, record_property):
    record_property("counted", "ends of text")
    changes, expected = STOPS[row]
    assert load_model(folder(tmp_path, *changes)).config.eos_token_ids == expected


@pytest.mark.parametrize("tokenizer_config", [{"tokenizer_class": "Qwen2Tokenizer"}, {"eos_token": "d"}, {}])
def test_the_tokenizers_end_is_that_of_transformers(tmp_path, tokenizer_config):
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path, with_special_token, files({"tokenizer_config.json": tokenizer_config}))
    theirs = transformers.AutoTokenizer.from_pretrained(path).eos_token_id
    assert load_model(path).config.eos_token_ids == (theirs,)


@pytest.mark.parametrize("place", ["config", "generation_config", "tokenizer"])
def test_generation_stops_at_the_token_of_any_file(tmp_path, place):
    prompt = list(b"ROMEO:\n")
    text = decoder("eager", load_model("tiny"), "host", 32).generate(prompt, 8)
    stop = text[1]
    places = {
        "config": config(eos_token_id=[stop]),
        "generation_config": files({"generation_config.json": {"eos_token_id": [stop, 1]}}),
        "tokenizer": files({"special_tokens_map.json": {"eos_token": chr(stop)}}),
    }
    dec = decoder("eager", load_model(folder(tmp_path, places[place])), "host", 32)
    expected = text[: text.index(stop) + 1]
    assert dec.generate(prompt, 8) == expected == list(dec.stream(prompt, 8))


def test_an_end_outside_the_vocabulary_is_left_out_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"\[-1, 999\] .*256"):
        model = load_model(folder(tmp_path, config(eos_token_id=[-1, 5, 999])))
    assert model.config.eos_token_ids == (5,)


# ---- Refused ----

QUANTISED, BF16 = "quantised weights", "the bf16"
# The changes to the folder, then words that the message must have: what came, and what to do.
BAD = {
    # kinds of RoPE that the kernels lack
    "yarn": (rope("yarn", factor=4.0), "'yarn'", "rope_parameters", "config.json without it"),
    "yarn by type": (rope("yarn", "type", factor=4.0), "'yarn'", "config.json without it"),
    "yarn in rope_scaling": (config(rope_scaling={"type": "yarn", "factor": 4.0}), "'yarn'", "rope_scaling"),
    "yarn in the oldest form": (
        [FLAT, config(rope_scaling={"rope_type": "yarn", "factor": 4.0})], "'yarn'", "rope_scaling"),
    "yarn in the wrapper": (wrapper(rope_scaling={"type": "yarn", "factor": 4.0}), "'yarn'", "rope_scaling"),
    "linear": (rope("linear", factor=2.0), "'linear'"),
    "linear in the wrapper": (wrapper(rope_parameters={"rope_type": "linear", "factor": 2.0}), "'linear'"),
    "dynamic": (rope("dynamic", factor=2.0), "'dynamic'"),
    "longrope": (rope("longrope", short_factor=[1.0], long_factor=[1.0]), "'longrope'"),
    "llama3": (rope("llama3", factor=8.0), "'llama3'"),
    "proportional": (rope("proportional"), "'proportional'"),
    "mrope": (rope("mrope", "type", mrope_section=[3, 3, 2]), "'mrope'"),
    "ntk": (config(rope_scaling={"type": "ntk"}), "'ntk'"),
    "RoPE by layer type": (config(rope_parameters={"full_attention": ROPE}), "full_attention", "one rope_parameters"),
    # files of another content
    **{f"LFS pointer: {name}": (files({name: LFS}), name, "Git LFS pointer", "git lfs pull")
       for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                    "special_tokens_map.json", "model.safetensors")},
    "LFS pointer: index": (files({INDEX: LFS, "model.safetensors": None}), INDEX, "git lfs pull"),
    "LFS pointer: shard": ([one_shard, files({"model.safetensors-00001-of-00001.safetensors": LFS})],
                           "00001-of-00001", "git lfs pull"),
    **{f"BOM: {name}": (files({name: b"\xef\xbb\xbf{}"}), name, "byte order mark", "UTF-8 without")
       for name in ("config.json", "tokenizer.json", "generation_config.json")},
    "web page: model.safetensors": (files({"model.safetensors": "\n<!DOCTYPE html><html>"}), "web page", "download"),
    "web page: config.json": (files({"config.json": "<html>"}), "config.json", "web page"),
    # another kind of folder
    "adapter": (files({"config.json": None, "model.safetensors": None, "adapter_model.safetensors": b"",
                       "adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen3.5-0.8B"}}),
                "adapter of Qwen/Qwen3.5-0.8B", "merge_and_unload"),
    "adapter beside its model": (files({"adapter_config.json": {}}), "adapter of another model", "merge_and_unload"),
    "GGUF only": ([only("qwen3.5-q4.gguf"), files({"config.json": None})], "qwen3.5-q4.gguf", "safetensors"),
    "GGUF beside a config": (only("qwen3.5.gguf"), "qwen3.5.gguf", "llama.cpp"),
    ".bin only": (only("pytorch_model.bin"), "pytorch_model.bin", "save_pretrained"),
    ".pth only": (only("consolidated.00.pth"), "consolidated.00.pth", "save_pretrained"),
    "a shard without its index": (only("model-00001-of-00002.safetensors"), "00001-of-00002", "index"),
    "the hub's cache": (files({"config.json": None, "model.safetensors": None, "snapshots/abc/config.json": "{}"}),
                        "snapshots/abc"),
    "a trainer's output": (files({"config.json": None, "model.safetensors": None, "checkpoint-500/config.json": "{}"}),
                           "checkpoint-500"),
    "nothing": (files({"config.json": None, "model.safetensors": None}), "model.safetensors", INDEX, "neither"),
    "a link into the hub's cache that was emptied": (
        files({"model.safetensors": Path("../blobs/4d7a")}), "../blobs/4d7a", "missing", "download"),
    "no config": (files({"config.json": None}), "config.json", "No such file"),
    "a shard that is missing": ([one_shard, files({"model.safetensors-00001-of-00001.safetensors": None})],
                                "00001-of-00001", "missing"),
    # another model
    **{f"model_type {name}": (config(model_type=name), f"{name!r}", "'qwen3_5_text'")
       for name in ("qwen3_5_moe_text", "qwen3_next", "llama", None)},
    "attention bias": (config(attention_bias=True), "attention_bias"),
    "another activation": (config(hidden_act="gelu"), "hidden_act", "'gelu'"),
    "fewer layers in the config": (config("layer_types", num_hidden_layers=4), "model.layers.4.", "does not belong"),
    "more layers in the config": (config("layer_types", num_hidden_layers=9), "model.layers.8.", "missing"),
    "no head": (config(tie_word_embeddings=False), "lm_head.weight", "tie_word_embeddings"),
    # quantised
    **{f"quantised by {method}": (config(quantization_config={"quant_method": method}), f"{method!r}", QUANTISED, BF16)
       for method in ("gptq", "awq", "bitsandbytes", "fp8", "torchao", "mxfp4")},
    "quantised in the wrapper": (wrapper(quantization_config={"quant_method": "gptq"}), "'gptq'", QUANTISED),
    "compressed-tensors, old": (config(compression_config={"format": "int-quantized"}), "compression_config", BF16),
    "MLX, quantised": (config(quantization={"bits": 4}), "quantization", "'bits': 4", BF16),
    **{f"tensor {name}": (tensors({UP.removesuffix("weight") + name: torch.ones(2, 2)}), name, QUANTISED, BF16)
       for name in ("qweight", "qzeros", "g_idx", "scales", "biases", "weight_scale", "weight_scale_inv", "input_scale",
                    "weight_packed", "weight_zero_point", "weight_scale_2", "weight.absmax", "SCB", "W_q", "codebooks",
                    "weight.quant_state.bitsandbytes__nf4")},
    "int8 weights": (tensors({UP: lambda t: t.to(torch.int8)}), UP, "I8", BF16),
    "packed int4 weights": (tensors({UP: torch.ones(384, 64, dtype=torch.uint8)}), UP, "U8", BF16),
    "fp8 weights": (tensors({UP: lambda t: t.to(torch.float8_e4m3fn)}), UP, "F8_E4M3", BF16),
    # another project's names and shapes
    "prefix of MLX": (renamed("model.", "language_model.model."), "'language_model.model.'", "MLX"),
    "prefix of PEFT": (renamed("model.", "base_model.model.model."), "'base_model.model.'", "merge_and_unload"),
    "prefix of DDP": (renamed("model.", "module.model."), "'module.'", "model.module"),
    "prefix of torch.compile": (renamed("model.", "_orig_mod.model."), "'_orig_mod.'", "compiled"),
    "prefix nobody knows": (renamed("model.", "decoder."), "decoder.", "model.embed_tokens.weight: missing"),
    "GGUF's names": (renamed("model.layers.", "blk."), "blk.0.", "missing"),
    "Qwen3-Next's fused projection": (
        renamed("in_proj_qkv.", "in_proj_qkvz."), "in_proj_qkv.weight: missing", "in_proj_qkvz.weight"),
    "gate and up in one": (
        tensors({UP: None, UP.replace("up", "gate_up"): torch.ones(768, 128)}), f"{UP}: missing", "gate_up_proj"),
    "MLX's convolution": (every(lambda t: t.transpose(1, 2), "conv1d"), CONV, "[256, 1, 4]", "[256, 4, 1]"),
    "convolution of two dimensions": (every(lambda t: t[:, 0], "conv1d"), CONV, "[256, 1, 4]", "[256, 4]"),
    "transposed matrices": (every(lambda t: t.T if t.dim() == 2 else t, "in_proj_qkv"), QKV, "[256, 128]"),
    "DeepSpeed's empty tensors": (tensors({UP: torch.ones(0, dtype=torch.bfloat16)}), UP, "[0]"),
    "a repeated head of another shape": (
        tensors({"lm_head.weight": EMBEDDING[:-1].clone()}), "lm_head.weight", "[256, 128]", "[255, 128]"),
    "the same tensor twice": (tensors({"model.language_model.norm.weight": torch.ones(128)}), "model.norm", "twice"),
    # values
    "NaN in a matrix": (tensors({UP: lambda t: t.index_fill(0, torch.tensor(7), float("nan"))}),
                        f"{UP}: 128 of 49152", "NaN", "model.safetensors"),
    "infinity in a norm": (tensors({NORM: lambda t: t.index_fill(0, torch.tensor(7), float("-inf"))}),
                           f"{NORM}: 1 of 128", "infinite"),
    "too large for bf16": (tensors({UP: lambda t: t.float().index_fill(0, torch.tensor(7), 3.4028e38)}),
                           f"{UP}: 128 of", "infinite"),
    "NaN in a repeated head": (tensors({"lm_head.weight": EMBEDDING * float("nan")}), "lm_head.weight", "NaN"),
    # end of text
    "end of text as text": (config(eos_token_id="5"), "config.json", "eos_token_id", "'5'"),
    "end of text as bool": (files({"generation_config.json": {"eos_token_id": True}}), "generation_config.json",
                            "eos_token_id", "True"),
    "end of text nested": (files({"generation_config.json": {"eos_token_id": [[1]]}}), "eos_token_id", "[[1]]"),
    "generation_config that is no object": (files({"generation_config.json": "[1]"}), "generation_config.json", "list"),
    "generation_config cut off": (files({"generation_config.json": "{"}), "generation_config.json", "readable"),
    "end of text as a number in the tokenizer": (files({"tokenizer_config.json": {"eos_token": 5}}),
                                                 "tokenizer_config.json", "eos_token", "5"),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("row", BAD)
def test_a_bad_checkpoint_is_refused_with_its_cause(tmp_path, monkeypatch, row, record_property):
    record_property("counted", "bad checkpoints refused")
    changes, *said = BAD[row]
    if not {"NaN", "infinite"} & set(said):  # only bad values need a tensor to be read
        monkeypatch.setattr(weights, "_read_tensor", lambda *_: pytest.fail("a tensor was read"))
    path = folder(tmp_path, *(changes if isinstance(changes, list) else [changes]))
    with pytest.raises((CheckpointError, ConfigError)) as error:
        load_model(path)
    message = str(error.value).replace(str(path), "FOLDER")
    assert "\n" not in message
    assert not [words for words in said if words not in message], message


# ---- Warned of ----


def test_norms_saved_for_a_factor_of_w_are_warned_of(tmp_path):
    zero_centred = [every(lambda t: t + 1, part) for part in ("layernorm", "_norm", "model.norm")]
    with pytest.warns(UserWarning, match=r"mean of (0.9|1.0).*subtract 1"):
        load_model(folder(tmp_path, *zero_centred))


@pytest.mark.parametrize("name", ["tiny", "one norm of mean 1"])
def test_norms_as_they_should_be_are_not_warned_of(tmp_path, name):
    path = TINY if name == "tiny" else folder(tmp_path, tensors({NORM: lambda t: t + 1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(path, ModelConfig.from_dict(CONFIG))
