"""Token ids in files: written piece by piece, memory-mapped, and checked by a sha256.

Any program can read numpy's own format (.npy). Because numpy does not notice a flipped bit, a second file, FILE.sha256,
holds the digest of the whole file.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from scratch_core.errors import DataError

HEADER = 128
"""Bytes of the header of a .npy file with one axis. numpy pads it, so that its size does not depend on the length."""


class TokenWriter:
    """Writes token ids [N] of one dtype to a .npy file, in pieces. The file gets its name when it is complete.

    Use it in a `with` block. An error inside leaves no file behind.
    """

    def __init__(self, path: Path, dtype: Any):
        self.path, self.dtype, self.count = path, np.dtype(dtype), 0
        self.partial = path.with_name(f"{path.name}.{os.getpid()}.partial")

    def __enter__(self) -> Self:
        """Open the file."""
        self.file = self.partial.open("wb")
        self.file.write(self._header())
        return self

    def append(self, ids: np.ndarray) -> None:
        """Write some more ids."""
        self.file.write(np.ascontiguousarray(ids, self.dtype).data)
        self.count += len(ids)

    def __exit__(self, kind: Any, *_: object) -> None:
        """Write the length and the digest, and give the file its name."""
        try:
            if kind is None:
                self.file.seek(0)
                self.file.write(self._header())
                self.file.close()
                digest_path(self.path).write_text(sha256_of(self.partial) + "\n")
                os.replace(self.partial, self.path)
        finally:
            self.file.close()
            self.partial.unlink(missing_ok=True)

    def _header(self) -> bytes:
        header, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": (self.count,)})
        if len(header.getvalue()) != HEADER:
            raise DataError(f"numpy wrote a header of {len(header.getvalue())} bytes, expected {HEADER}")
        return header.getvalue()


def save_tokens(tokens: np.ndarray, path: str | Path) -> None:
    """Write ``tokens`` as .npy with a sha256 beside it (.npy.sha256)."""
    with TokenWriter(Path(path), tokens.dtype) as writer:
        writer.append(tokens)


def open_tokens(path: str | Path, *, verify: bool = True) -> np.ndarray:
    """Memory-map token ids [N], such as `save_tokens` writes.

    Raises DataError if the file is missing, is not a .npy of integers with one axis, or (with ``verify``) is damaged.
    """
    path = Path(path)
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = digest_path(path).read_text().strip() if verify else None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as tokens: {error}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else "several arrays"
        raise DataError(f"{path} cannot be read as tokens: it must hold integers in one axis, found {found}")
    if verify and (digest := sha256_of(path)) != expected:
        raise DataError(f"{path} is damaged: sha256 {digest[:12]}..., expected {str(expected)[:12]}...; make it again")
    return tokens


def digest_path(path: Path) -> Path:
    """Return the file that holds the digest of a file."""
    return path.with_name(path.name + ".sha256")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
