"""Find the files of a checkpoint folder; for files that a model cannot be loaded from, say why and what to do."""

from __future__ import annotations

import json
from pathlib import Path

from luce_edu.errors import CheckpointError

_BOM = b"\xef\xbb\xbf"
_LFS = b"version https://git-lfs"  # the start of a Git LFS pointer, a placeholder for a file that was not fetched
_PICKLED = ("*.bin", "*.pt", "*.pth")


def check_start(path: Path, error: type[ValueError] = CheckpointError) -> None:
    """Raise `error` if a file's first bytes show that it is something else; OSError if it cannot be read."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS):
        raise error(f"{path}: a Git LFS pointer in place of the file; run 'git lfs pull' in {path.parent}")
    if start.startswith(_BOM):
        raise error(f"{path}: starts with a byte order mark; save it as UTF-8 without one")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise error(f"{path}: a web page in place of the file; download it by its address with /resolve/, not /blob/")


def read_json(path: Path, error: type[ValueError] = CheckpointError) -> dict:
    """Read a JSON file that holds an object. Raises `error`, naming the file, if it does not."""
    try:
        check_start(path, error)
        text = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: not a readable {path.name} ({reason})") from reason
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: not a readable {path.name} ({reason})") from reason
    if not isinstance(content, dict):
        raise error(f"{path}: expected an object, got {type(content).__name__}")
    return content


def safetensors_files(folder: Path) -> list[Path]:
    """List the weights' files: `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Raises CheckpointError for a folder that holds something else, such as an adapter, before any file is opened.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a checkpoint folder, and there is none")
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "another model"
        raise CheckpointError(
            f"{folder}: holds an adapter of {base}, not a whole model; merge it into that model "
            "(PEFT's merge_and_unload), save the result, and load that folder"
        )
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if single.is_symlink():
        raise CheckpointError(f"{single}: links to {single.readlink()}, which is missing; download the folder again")
    if not index.is_file():
        expected = f"{folder}: expected {single.name} or {index.name}, found"
        raise CheckpointError(f"{expected} {_found_instead(folder)}")
    weight_map = read_json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    bad = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if bad or not names:
        raise CheckpointError(f"{index}: expected a 'weight_map' of tensor to file name, got {bad or weight_map!r:.80}")
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: the shard is missing; {index.name} names it")
    return [folder / name for name in names]


def _found_instead(folder: Path) -> str:
    """Say what a folder without the expected weights holds, and what to do."""
    if files := sorted(folder.glob("*.gguf")):
        return f"{files[0].name}: GGUF is llama.cpp's format; take the safetensors checkpoint that it was made from"
    if files := sorted(path for pattern in _PICKLED for path in folder.glob(pattern)):
        return (
            f"{files[0].name}: pickled weights, which can run code when they are read; convert them with transformers: "
            "from_pretrained(folder).save_pretrained(new_folder)"
        )
    if files := sorted(folder.glob("*.safetensors")):
        return f"{files[0].name}: shards need their index; download the folder again, whole"
    if files := sorted([*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]):
        return f"neither; a folder inside has a config.json: give {files[-1].parent}"
    return "neither; weights in other formats, such as GGUF or .bin, are not read"
