"""Fingerprints of sets of files: a digest of their names and contents, without reading every file each time.

The digests of files are cached in the user's cache folder. A cached digest is used if the file's size and modification
time (in nanoseconds) have not changed. A file that was modified in the last seconds is not cached, because a second
change within one tick of the clock would go unnoticed.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from scratch_core.errors import DataError

KEPT_FROM = 64_000_000
"""Cache the digests of at least this many bytes of files. Fewer are read again in a tenth of a second."""


def fingerprint(root: Path, paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that depend on the files' names below ``root`` and contents, not on their order.

    Raises DataError that names a file which cannot be read.
    """
    stats = {path: path.stat() for path in sorted(paths)}
    is_cached = sum(stat.st_size for stat in stats.values()) >= KEPT_FROM
    store = _store(root)
    known = _read(store) if is_cached else {}
    found, now = {}, time.time()
    digest = hashlib.sha256()
    for path, stat in stats.items():
        name = path.relative_to(root).as_posix()
        seen = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(name)
        if not isinstance(entry, list) or entry[:2] != seen:
            entry = [*seen, _sha256(path)]
        if now - stat.st_mtime > 5:
            found[name] = entry
        digest.update(f"{name}\0{entry[2]}\n".encode("utf-8", "surrogateescape"))
    if is_cached and found != known:
        with contextlib.suppress(OSError):  # without the cache, the next time is only slower
            store.parent.mkdir(parents=True, exist_ok=True)
            partial = store.with_name(f"{store.name}.{os.getpid()}")
            partial.write_text(json.dumps(found))
            os.replace(partial, store)
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder for files that scratch-core can make again, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scratch-core"


def _store(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_folder() / "fingerprints" / f"{name}.json"


def _read(store: Path) -> dict[str, list]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(store.read_text())
        if isinstance(value, dict):
            return value
    return {}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
