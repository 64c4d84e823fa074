"""load_model finds the model for each kind of name; the error for a wrong name lists the right ones."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from luce_edu import models
from luce_edu.config import ModelConfig
from luce_edu.errors import CheckpointError
from luce_edu.models import DATA, TextStream, Tokenizer, load_model
from luce_edu.weights import random_weights

TOY = json.loads(models.RANDOM_CONFIG.read_text(encoding="utf-8"))["text_config"] | {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "eos_token_id": 7,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint with random weights and no tokenizer."""
    path = tmp_path / "toy"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TOY))
    weights = random_weights(ModelConfig.from_dict(TOY))
    save_file(dict(weights.named_tensors()), path / "model.safetensors")
    return path


def save_byte_tokenizer(path):
    """Write a tokenizer.json of 256 tokens, one for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


@pytest.fixture
def tokenizer(tmp_path):
    save_byte_tokenizer(tmp_path / "tokenizer.json")
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("as_type", [str, lambda path: path], ids=["str", "Path"])
def test_folder_gives_its_config_and_weights(folder, as_type):
    model = load_model(as_type(folder))
    assert model.config == ModelConfig.from_dict(TOY)
    assert model.folder == folder and model.tokenizer is None and model.name == str(folder)
    expected = dict(random_weights(model.config).named_tensors())
    for name, tensor in model.weights.named_tensors():
        assert torch.equal(tensor, expected[name]), name


def test_folder_with_tokenizer_turns_text_into_ids_and_back(folder):
    save_byte_tokenizer(folder / "tokenizer.json")
    tokenizer = load_model(folder).tokenizer
    ids = tokenizer.encode("naïve 🙂\n")
    assert len(ids) == len("naïve 🙂\n".encode()) and all(type(token) is int for token in ids)
    assert tokenizer.decode(ids) == "naïve 🙂\n"


def test_tiny_comes_with_the_package_and_a_tokenizer():
    model = load_model("tiny")
    assert model.name == "tiny" and model.folder == DATA / "tiny"
    assert model.tokenizer.decode(model.tokenizer.encode("ROMEO:\n")) == "ROMEO:\n"
    assert max(model.tokenizer.encode("ROMEO:\n")) < model.config.vocab_size


def test_random_model_has_the_bundled_shapes_and_draws_by_seed(monkeypatch, tmp_path):
    small = tmp_path / "config.json"  # the full size is 1.5 GB
    small.write_text(json.dumps(TOY))
    monkeypatch.setattr(models, "family_config", lambda size: ModelConfig.from_file(small))
    model = load_model("random-0.8b", seed=5)
    assert model.tokenizer is None and model.folder is None
    assert torch.equal(model.weights.embed_tokens, random_weights(model.config, seed=5).embed_tokens)
    assert not torch.equal(model.weights.embed_tokens, load_model("random-0.8b").weights.embed_tokens)


def test_random_config_is_the_full_model():
    assert ModelConfig.from_file(models.RANDOM_CONFIG).vocab_size == 248320


def test_hub_id_is_downloaded_and_loaded_from_where_it_lies(folder, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot_download(hub_id, **options):
        asked.update(hub_id=hub_id, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_model("Qwen/Qwen3.5-0.8B").folder == folder
    assert asked == {"hub_id": "Qwen/Qwen3.5-0.8B", "allow_patterns": ["*.json", "*.safetensors"]}


def test_failed_download_says_what_was_tried_and_that_a_folder_works(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(hub_id, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="org/name: .*no route to host.*local folder"):
        load_model("org/name")


def test_existing_folder_goes_before_a_hub_id(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setattr(models, "_download", lambda hub_id: pytest.fail("asked the hub"))
    assert load_model(f"{folder.parent.name}/toy").config.vocab_size == 64


WRONG_NAMES = [
    *((name, "random-4b, random-9b, random-odd") for name in ("", "huge", "tiny ", "random-3b", "x" * 5000, "a\0b")),
    *((name, "got .*expected tiny") for name in (None, 3, b"tiny", ["tiny"])),
    *((name, f"{name}: no such") for name in ("./nowhere", "/nowhere/at/all", "~nobody/nowhere/x", "a/b/c")),
]


@pytest.mark.parametrize("name, said", WRONG_NAMES, ids=range(len(WRONG_NAMES)))
def test_a_wrong_name_is_refused_with_the_choices_or_the_folder(name, said):
    with pytest.raises(CheckpointError if said.endswith("no such") else ValueError, match=said):
        load_model(name)


def test_file_in_place_of_a_folder_is_named(folder):
    with pytest.raises(CheckpointError, match="config.json: .*file"):
        load_model(folder / "config.json")


def test_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json: not a readable tokenizer.json"):
        load_model(folder)


@pytest.mark.parametrize("text", ["plain", "naïve", "🙂 four bytes", "日本語", ""])
def test_stream_gives_the_whole_text_in_whole_characters(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.feed(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text and stream.flush() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_stream_goes_on_after_a_replacement_character_that_belongs_to_the_text(tokenizer):
    stream = TextStream(tokenizer)
    assert "".join(stream.feed(token) for token in tokenizer.encode("a\ufffdb")) == "a\ufffdb"


def test_decoding_token_by_token_would_break_characters(tokenizer):
    """The fault that TextStream avoids."""
    assert "".join(tokenizer.decode([token]) for token in tokenizer.encode("naïve")) != "naïve"


def test_stream_shows_plain_text_at_once_and_an_unfinished_character_at_the_end(tokenizer):
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("ab🙂")[:-1]
    assert [stream.feed(token) for token in ids] == ["a", "b", "", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_loading_a_folder_imports_neither_transformers_nor_the_hub_client(folder):
    script = (
        "import sys; from luce_edu.models import load_model; load_model(sys.argv[1]); "
        "print([m for m in ('transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_current_gpu_is_one_key_of_the_weights(monkeypatch):
    """The name "cuda" means the current device. Weights must not be on one GPU twice, under two names."""
    model = load_model("tiny")
    moved = []
    monkeypatch.setattr(type(model.weights), "to", lambda self, device: moved.append(str(device)) or str(device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    on = [model.weights_on(device) for device in ("cuda", "cuda:1", torch.device("cuda"), torch.device("cuda", 1))]
    assert on == ["cuda:1"] * 4 and moved == ["cuda:1"]
    assert model.weights_on("cuda:0") == "cuda:0" and model.weights_on("cpu") == model.weights_on(torch.device("cpu"))
    assert moved == ["cuda:1", "cuda:0", "cpu"]
