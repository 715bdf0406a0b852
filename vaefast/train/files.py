"""Files that are whole at every moment, and a folder that one process at a time writes into."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from . import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def whole(path: Path, *, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block ends well.

    A process that is killed leaves the file that was there, or the new one, never half of one.

    Args:
        sync: on the disk before it takes the other's place, so that a power cut is no worse.
        shared: other processes may write the same: each has a path of its own.
    """
    part = part_of(path.with_stem(f"{path.stem}-{os.getpid()}") if shared else path)
    try:
        yield part
        if sync:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        # A full disk's does not say which file it is.
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """What `whole` writes to, and what a process killed meanwhile leaves behind."""
    # Beside it: a rename is one step only within a file system. The suffix stays last, which says
    # to matplotlib what to draw.
    return path.with_name(f"{path.stem}.part{path.suffix}")


class Lock:
    """Holds a folder for this process; the system lets go of it when the process dies.

    `left_by`: the number of the process that died while it held the folder, if one did.

    Raises:
        InputError: another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_by: int | None = None
        self._file = path.open("a+")
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise

    def _take(self) -> None:
        if fcntl:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.path.parent} is being written by process {self._holder()}: wait for "
                    "it, or give another folder"
                ) from None
            except OSError:
                # A file system without locks.
                return
            self.left_by = self._holder()
        self._file.truncate(0)
        json.dump({"pid": os.getpid(), "host": platform.node()}, self._file)
        self._file.flush()

    def _holder(self) -> int | None:
        self._file.seek(0)
        try:
            return int(json.loads(self._file.read())["pid"])
        except (ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        """Lets go of the folder; once is enough, more does no harm."""
        if not self._file.closed:
            # Emptied, not removed: another process may wait at this very file.
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
