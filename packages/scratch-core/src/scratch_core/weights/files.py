"""Finding the weight files of a folder, refusing damaged and unsafe ones, and opening the rest."""

import contextlib
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from scratch_core.config import read_json, size_of_file
from scratch_core.errors import CheckpointError, MissingExtraError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def resolve(folder: str | Path) -> Path:
    """Return a local folder. A name such as ``owner/model`` that is no folder is fetched from the Hugging Face Hub.

    Raises CheckpointError if there is no such folder or the Hub fails, MissingExtraError without the extra "hub".
    """
    if str(folder) == "":
        raise CheckpointError("the folder's name is empty: name a folder with config.json and weights")
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file: name the folder that holds config.json and the weights")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) or str(folder).startswith("."):
        raise CheckpointError(f"there is no folder {path}: name one that holds config.json and weights")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("hub", f"there is no folder {path}; fetching it from the Hugging Face Hub") from None
    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise CheckpointError(f"there is no folder {path}, and the Hub could not provide it: {error}") from error


@contextlib.contextmanager
def open_folder(folder: Path) -> Generator[dict[str, Any]]:
    """Yield {key: safetensors slice} of all weight files of a folder.

    Raises CheckpointError for missing, damaged or unsafe files.
    """
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for name, keys in weight_files(folder).items():
            file = stack.enter_context(open_file(folder / name))
            held = set(file.keys())
            if absent := sorted(set(keys or ()) - held):
                raise CheckpointError(
                    f"{folder / INDEX} places keys in {name} that are not there: {', '.join(absent)}. "
                    "Download both files again"
                )
            for key in sorted(held):
                if key in files:
                    raise CheckpointError(
                        f"two files of {folder} hold the key {key!r}, the second is {name}: remove one of them"
                    )
                files[key] = file.get_slice(key)
        yield files


def weight_files(folder: Path) -> dict[str, list[str] | None]:
    """Return {file name: the keys it must hold, None if unknown}, from the index where there is one.

    Raises CheckpointError if there are no weights, and for an index that is malformed or names missing files.
    """
    if (folder / SINGLE).exists():
        return {SINGLE: None}
    if not (folder / INDEX).exists():
        for path in sorted(folder.iterdir()):
            if path.suffix in PICKLES:
                raise CheckpointError(
                    f"{path} is a pickle, which can run code when opened, and is refused: "
                    f"convert it to {SINGLE} with a tool that you trust"
                )
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}: name the folder that holds the weights")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map: download it again")
    names: dict[str, list[str] | None] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or re.search(r"[/\\\0]", name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} places {key!r} in {name!r}: a shard must be a .safetensors file of the same folder. "
                "Put the shards beside the index and name them there, or download the checkpoint again"
            )
        cast("list[str]", names.setdefault(name, [])).append(key)
    if absent := sorted(name for name in names if not (folder / name).exists()):
        raise CheckpointError(f"{folder} lacks shards that its index names: {', '.join(absent)}. Download them")
    return names


def open_file(path: Path) -> Any:
    """Return an open safetensors file. Raises CheckpointError if it is missing, damaged or a pickle."""
    try:
        size_of_file(path)
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        try:
            with path.open("rb") as file:
                start = file.read(9)
        except OSError as unreadable:
            raise CheckpointError(
                f"{path} cannot be read: {unreadable.strerror}. Give yourself permission to read it"
            ) from error
        # A pickle begins with 0x80 and its protocol; so may the length of a header, after which comes "{".
        pickled = start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05" and start[8:] != b"{"
        if pickled or start[:4] == b"PK\x03\x04":
            raise CheckpointError(
                f"{path} is a pickle or a torch archive under another name. It could run code and is refused: "
                f"convert it to {SINGLE} with a tool that you trust"
            ) from None
        raise CheckpointError(
            f"{path} is truncated, damaged or no safetensors file: {error}. Download it again"
        ) from error
