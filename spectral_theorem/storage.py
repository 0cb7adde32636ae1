"""Write files whole or not at all, and values as strict JSON with every null accounted for."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

FORGOTTEN = 86400.0  # seconds without a byte after which nobody writes a temporary file any more
_TEMPORARY = re.compile(r"\..*\.(?P<where>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def json_ready(value: Any, *, at: str = "") -> tuple[Any, list[dict[str, str]]]:
    """Turn a value into what strict JSON can hold, and list every number that became null.

    Parameters
    ----------
    value : mappings, sequences, arrays, Enum members, dataclasses, paths and numbers, nested at will.
    at : dotted path of `value` in the whole, used in the list.

    Returns
    -------
    (value, nulls) : the second a list of ``{"path": ..., "reason": "nan" | "inf" | "-inf"}``.

    Raises
    ------
    TypeError
        On an object that none of these describe.

    Examples
    --------
    >>> json_ready({"kappa": [1.0, float("nan")]})
    ({'kappa': [1.0, None]}, [{'path': 'kappa[1]', 'reason': 'nan'}])
    """
    if isinstance(value, enum.Enum):
        return value.name, []
    if hasattr(value, "tolist"):
        value = value.tolist()
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, float):
        return (value, []) if math.isfinite(value) else (None, [{"path": at, "reason": repr(value)}])
    if value is None or isinstance(value, (bool, int, str)):
        return value, []
    if isinstance(value, os.PathLike):
        return os.fspath(value), []
    if isinstance(value, Mapping):
        parts = {str(key): json_ready(item, at=f"{at}.{key}" if at else str(key)) for key, item in value.items()}
        return {key: item for key, (item, _) in parts.items()}, [null for _, nulls in parts.values() for null in nulls]
    if isinstance(value, Iterable):
        items = [json_ready(item, at=f"{at}[{index}]") for index, item in enumerate(value)]
        return [item for item, _ in items], [null for _, nulls in items for null in nulls]
    raise TypeError(f"{at or 'value'} of type {type(value).__name__} has no form in JSON")


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Give `path` its new content whole, or leave what was there.

    Parameters
    ----------
    path : the file to make or replace.
    write : called with an open binary file.

    Returns
    -------
    Path
        The same path.

    Notes
    -----
    A hidden temporary name in the same folder, fsync, then a rename: a process killed at any moment
    leaves the old file, the new file, or a hidden leftover that no reader looks at (`remove_leftovers`). The name says
    which machine and process writes, and is random too.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "a.txt", lambda file: file.write(b"whole")).read_text()
    'whole'
    """
    temporary = path.with_name(f".{path.name}.{_here()}-{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def remove_leftovers(folder: Path) -> int:
    """Remove what killed processes left half written, and nothing that a live one may still be writing.

    Parameters
    ----------
    folder : looked at by itself, without its subfolders; it need not exist.

    Returns
    -------
    int
        How many files went.

    Notes
    -----
    A temporary file of `write_atomically` goes when the process in its name is gone from this machine, as booted and as
    seen from this container, where alone numbers of processes mean something. Any other hidden `.tmp`, one of another
    machine say, goes when nothing was written to it for a day.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / ".a.txt.1.tmp").touch()
    ...     remove_leftovers(Path(folder))
    0
    """
    removed = 0
    for file in folder.glob(".*.tmp"):
        name = _TEMPORARY.fullmatch(file.name)
        with contextlib.suppress(OSError):  # gone in the meantime, or not ours to remove
            lost = name is not None and name["where"] == _here() and not _alive(int(name["pid"]))
            if lost or time.time() - file.stat().st_mtime > FORGOTTEN:
                file.unlink()
                removed += 1
    return removed


@functools.cache
def _here() -> str:
    """Name the realm of process numbers: machine, its last start, and container, 8 hexadecimal digits."""
    said = [socket.gethostname()]
    with contextlib.suppress(OSError):
        said.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        said.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\n".join(said).encode(), digest_size=4).hexdigest()


def _alive(pid: int) -> bool:
    """Say whether a process is there, or might be."""
    if os.name != "posix":  # elsewhere signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
