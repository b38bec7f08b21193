"""Folders that several processes may use at once: a lock that ends with its process, and temporary folders.

The lock is the system's (flock): it ends when its process is killed, and needs no process id, which may be used again.
The file names the process that holds it. On a file system without such locks, nothing is locked and a warning is given.
"""

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import ClassVar

from scratch_core.errors import CheckpointError, ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OWNER = ".owner.lock"
"""The name of the lock in a working folder. It marks the folder as made by this module."""


class FolderLock:
    """Holds a folder, by a lock on ``run.lock`` in it, until `release` or until this process ends or is killed.

    One process may hold a folder several times. Raises ConfigError that names process and host if another process holds
    it, CheckpointError if the folder cannot be made or written.
    """

    _held: ClassVar[dict[Path, list[int]]] = {}  # path of the lock -> [file, how many times]

    def __init__(self, folder: str | Path):
        self._path = Path(folder).resolve() / "run.lock"
        if self._path in self._held:
            self._held[self._path][1] += 1
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = _lock(self._path)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
        if file is None:
            owner = "another process"
            with contextlib.suppress(OSError):  # it may just have ended
                owner = self._path.read_text(errors="replace").strip() or owner
            raise ConfigError(f"{folder} is in use by {owner}: wait until it ends, stop it, or choose another folder")
        self._held[self._path] = [file, 1]

    def release(self) -> None:
        """Let other processes use the folder, unless this one still holds it elsewhere."""
        held = self._held[self._path]
        held[1] -= 1
        if not held[1]:
            del self._held[self._path]
            with contextlib.suppress(OSError):  # the folder may be gone
                self._path.unlink()
            os.close(held[0])


@contextlib.contextmanager
def working_folder(parent: Path, prefix: str) -> Generator[Path]:
    """Yield a new folder in ``parent``, with a name that begins with ``prefix``. It is removed at the end.

    Such folders that killed processes left behind are removed first.
    """
    remove_abandoned(parent, prefix)
    file = None
    while file is None:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with contextlib.suppress(FileNotFoundError):  # another process removed it as abandoned
            file = _lock(folder / OWNER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(file)


def remove_abandoned(parent: Path, prefix: str, *, all_of_them: bool = False) -> None:
    """Remove the working folders in ``parent`` whose process has ended.

    With ``all_of_them``, for callers that hold the lock of ``parent``, folders of any process are removed.
    """
    for folder in parent.iterdir():
        if not folder.name.startswith(prefix):
            continue
        if all_of_them:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / OWNER).is_file():
            with contextlib.suppress(OSError):  # gone already, or not ours to remove
                file = _lock(folder / OWNER, unlockable=False)
                if file is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(file)


def _lock(path: Path, *, unlockable: bool = True) -> int | None:
    """Return the file at ``path``, open and locked, with this process written into it; None if another holds it.

    If the file system has no locks, the file is returned unlocked with a warning, or None unless ``unlockable``.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError as error:
            if not unlockable:
                os.close(file)
                return None
            warnings.warn(f"{path.parent} cannot be locked ({error}): let no second process use it", stacklevel=3)
        if _is_same(file, path):  # if not, its last holder has just removed it
            with contextlib.suppress(OSError):  # on a full disk, only the name is missing
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return file
        os.close(file)


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def why_not_written(error: BaseException, folder: Path, needed: int) -> str:
    """Return in one line why ``needed`` bytes could not be written to ``folder``, and what to do about it."""
    while error.__cause__ is not None:  # Orbax's own error hides the reason there
        error = error.__cause__
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error) or "quota exceeded" in str(error):
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        return f"the disk is full: {size(needed)} are needed, {size(free)} are free; free some space and resume"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0][:200]}"


def size(count: float) -> str:
    """Return a number of bytes for people, such as "1.5 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
