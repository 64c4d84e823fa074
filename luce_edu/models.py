"""Load models: `load_model` finds config, weights and tokenizer by one name."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from luce_edu.checkpoint import check_start, read_json, safetensors_files
from luce_edu.config import ModelConfig, eos_ids
from luce_edu.errors import CheckpointError
from luce_edu.family import CONFIG_08B, FAMILY, family_config
from luce_edu.odd_model import ODD_CONFIG, odd_weights
from luce_edu.weights import Weights, load_weights, random_weights

DATA = Path(__file__).parent / "data"
RANDOM_CONFIG = CONFIG_08B
_RANDOM = {f"random-{size}": size for size in FAMILY}
MODELS = ("tiny", *_RANDOM, "random-odd")  # the models that need no files from outside the package


class Tokenizer:
    """Turn text into token ids and back, by a checkpoint's tokenizer.json."""

    def __init__(self, path: str | Path):
        """Read a tokenizer.json. Raises CheckpointError that names the file."""
        import tokenizers  # here, because a model can run without it: only text needs it

        try:
            check_start(Path(path))
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises plain Exception for a file that it cannot parse
            raise CheckpointError(f"{path}: not a readable tokenizer.json ({error})") from error

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Raises ValueError for invalid Unicode, which a terminal can pass on."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt: not valid UTF-8 at character {error.start}") from None
        return self._tokenizer.encode(text).ids

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text, such as '<|im_end|>'; None if there is no such token."""
        return self._tokenizer.token_to_id(token)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids. Special tokens are left out; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids))


class TextStream:
    """Turn token ids into text one by one; a character is held back until its last byte has come."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """Return the text that this token completes; it may be empty."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd"):
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """Return the text that is still held back, complete or not."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text


@dataclass
class Model:
    """A loaded model.

    config     its end-of-text tokens are those of all files of the folder
    tokenizer  None if there is no tokenizer.json
    folder     None for random weights
    """

    name: str
    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer | None
    folder: Path | None
    _placed: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def weights_on(self, device) -> Weights:
        """Return the weights on a device. They are moved there once and shared by all decoders of this model."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._placed:
            self._placed[device] = self.weights.to(device)
        return self._placed[device]


def load_model(name: str | Path, *, seed: int = 0) -> Model:
    """Load a model by name; the weights are on the CPU.

    name  "tiny", "random-0.8b" and larger ones (family.py), "random-odd" (odd_model.py), a checkpoint folder, or a hub
          id such as "Qwen/Qwen3.5-0.8B", which is downloaded once. A folder that exists takes precedence over a hub id
    seed  draws the weights of random models
    A checkpoint is read as transformers reads it. Text ends at any end-of-text token that one of its files names.
    Raises ValueError with the choices for another name, ConfigError for another architecture or an unsupported field,
    and CheckpointError for files that are missing, damaged or of another format, or for a failed download.
    """
    if not isinstance(name, (str, Path)):
        raise ValueError(f"model: expected a name or folder, got {name!r}; {_choices()}")
    name = str(name)
    if name in _RANDOM:
        config = family_config(_RANDOM[name])
        return Model(name, config, random_weights(config, seed), tokenizer=None, folder=None)
    if name == "random-odd":
        return Model(name, ODD_CONFIG, odd_weights(seed), tokenizer=None, folder=None)
    folder = DATA / name if name == "tiny" else _find_folder(name)
    safetensors_files(folder)  # first: for a folder of another kind it says more than that config.json is missing
    config = ModelConfig.from_file(folder / "config.json")
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = Tokenizer(tokenizer_file) if tokenizer_file.is_file() else None
    config = replace(config, eos_token_ids=_stop_ids(folder, config, tokenizer))
    weights = load_weights(folder, config)
    config = replace(config, tie_word_embeddings=weights.lm_head is weights.embed_tokens)
    return Model(name, config, weights, tokenizer, folder)


def _stop_ids(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Collect the tokens that end a text, from config.json, generation_config.json and the tokenizer.

    Chat models name the end of a turn in one of the last two. An id outside the vocabulary is left out with a warning,
    because it is never generated; transformers ignores it too.
    """
    ids = set(config.eos_token_ids)
    generation = folder / "generation_config.json"
    if generation.is_file():
        ids.update(eos_ids(read_json(generation), str(generation)))
    if tokenizer is not None:
        ids.update(token for token in map(tokenizer.id_of, _eos_names(folder)) if token is not None)
    outside = sorted(token for token in ids if not 0 <= token < config.vocab_size)
    if outside:
        warnings.warn(
            f"{folder}: end-of-text ids {outside} are outside the vocabulary of {config.vocab_size} and are ignored",
            stacklevel=3,
        )
    return tuple(sorted(ids.difference(outside)))


def _eos_names(folder: Path) -> set[str]:
    """Collect the end-of-text tokens that the tokenizer's files name; Qwen's tokenizers have a default."""
    names, kind = set(), "Qwen2Tokenizer"
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        if path.is_file():
            content = read_json(path)
            kind = content.get("tokenizer_class") or kind
            token = content.get("eos_token")
            name = token.get("content") if isinstance(token, dict) else token
            if name is not None and not isinstance(name, str):
                raise CheckpointError(f"{path}: expected eos_token to be a token's text, got {token!r:.80}")
            names |= {name} - {None}
    return names or ({"<|endoftext|>"} if str(kind).startswith("Qwen") else set())


def _find_folder(name: str) -> Path:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise CheckpointError(f"{name}: expected a checkpoint folder, got a file")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _download(name)
    if "/" in name or os.sep in name:
        raise CheckpointError(f"{name}: no such checkpoint folder; {_choices()}")
    raise ValueError(f"model: unknown name {name!r}; {_choices()}")


def _choices() -> str:
    return f"expected {', '.join(MODELS)}, a checkpoint folder, or a hub id like Qwen/Qwen3.5-0.8B"


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # for no network, no such model, no access or a full disk the remedy is the same
        raise CheckpointError(
            f"{hub_id}: there is no such folder here, and the download of *.json and *.safetensors from the "
            f"Hugging Face hub failed ({type(error).__name__}: {error}). A local folder with config.json and "
            "model.safetensors works too: give its path"
        ) from error
