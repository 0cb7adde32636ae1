"""Read Flax checkpoints (`flax_model.msgpack` of Hugging Face and whisper-jax) that are not to be trusted.

The file is a tree of maps whose leaves are extensions, each a packed (shape, dtype, bytes). Only the
frame is read here, with every length compared with what is left of the file; no array is made until
it is asked for. A general decoder would build all of it in memory first, and would let the file name
the dtype it is to make.
"""

import math
from pathlib import Path
from typing import BinaryIO, NoReturn

import jax.numpy as jnp
import numpy as np

from ..types import refuse
from .tensors import Stored, opened

_ARRAY = 1
_DEEPEST = 12
_MOST_ENTRIES = 1 << 16
_LONGEST_NAME = 256
_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# First byte to (kind, bytes of the length that follows); the small forms hold their length themselves.
_SIZED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def read_flax(path: Path) -> dict[str, Stored]:
    """Read the frame of a Flax checkpoint; no array is read.

    Parameters
    ----------
    path : the file.

    Returns
    -------
    dict
        From place in the tree (`model/encoder/conv1/kernel`) to tensor.

    Raises
    ------
    InputError
        If the file is truncated, nested too deeply, holds anything but arrays of floats, or states
        a size that it has no room for.

    Examples
    --------
    >>> import tempfile
    >>> from flax.serialization import msgpack_serialize
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "flax_model.msgpack"
    ...     _ = path.write_bytes(msgpack_serialize({"a": {"b": np.ones((2, 3), np.float32)}}))
    ...     print(read_flax(path)["a/b"].shape)
    (2, 3)
    """
    if not path.is_file():
        refuse(f"{path}, which is not a file", "a flax_model.msgpack", "the folder of a Flax checkpoint")
    with opened(path) as file:
        frame = _Frame(path, file, path.stat().st_size)
        frame.tree("", 0)
        if frame.left:
            frame.bad(f"{frame.left} bytes after its end")
    return frame.tensors


class _Frame:
    """Walk through one file, collecting where its arrays lie."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.left = size
        self.entries = 0
        self.tensors: dict[str, Stored] = {}

    def bad(self, what: str) -> NoReturn:
        refuse(f"{self.path} with {what}", "a whole Flax checkpoint", "downloading it again")

    def take(self, count: int) -> bytes:
        self.pass_over(count)
        return self.file.read(count)

    def pass_over(self, count: int) -> None:
        if count > self.left:
            self.bad(f"{count} bytes announced and {self.left} left")
        self.left -= count

    def token(self) -> tuple[str, int]:
        """Return the kind of the next value, and its length (a number's value)."""
        first = self.take(1)[0]
        if first < 0x80:
            return "number", first
        if first < 0xC0:
            kind = "map" if first < 0x90 else "array" if first < 0xA0 else "text"
            return kind, first & (0x1F if kind == "text" else 0x0F)
        if first in _UNSIGNED:
            return "number", int.from_bytes(self.take(_UNSIGNED[first]), "big")
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first not in _SIZED:
            return "other", 0
        kind, width = _SIZED[first]
        return kind, int.from_bytes(self.take(width), "big")

    def tree(self, prefix: str, depth: int) -> None:
        """Read one map and all it holds."""
        kind, length = self.token()
        if kind == "extension" and depth:
            return self.array(prefix, length)
        if kind != "map":
            self.bad(f"{prefix or 'a root'!r} that is no {'array' if depth else 'map'}")
        if depth > _DEEPEST:
            self.bad(f"maps nested deeper than {_DEEPEST}")
        self.entries += length + 1
        if self.entries > _MOST_ENTRIES:
            self.bad(f"more than {_MOST_ENTRIES} entries")
        for _ in range(length):
            self.tree(f"{prefix}/{self.key()}" if depth else self.key(), depth + 1)

    def key(self) -> str:
        kind, length = self.token()
        if kind not in ("text", "bytes") or not 0 < length <= _LONGEST_NAME:
            self.bad("a key that is no name")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.bad("a key that is no text")

    def array(self, name: str, length: int) -> None:
        """Read the frame of one extension of `length` bytes."""
        code, begin = self.take(1)[0], self.size - self.left
        if code != _ARRAY:
            self.bad(f"an extension {code} at {name!r}")
        if self.token() != ("array", 3):
            self.bad(f"a malformed array at {name!r}")
        kind, rank = self.token()
        axes = [self.token() for _ in range(rank)] if kind == "array" and rank <= _DEEPEST else [("other", 0)]
        kind, count = self.token()
        known = kind in ("text", "bytes") and count <= _LONGEST_NAME
        dtype = self.take(count).decode("latin-1") if known else ""
        kind, count = self.token()
        shape: tuple[int, ...] = tuple(axis for _, axis in axes)
        if any(kind != "number" for kind, _ in axes) or kind != "bytes":
            self.bad(f"a malformed array at {name!r}")
        if dtype not in _DTYPES:
            refuse(f"{name!r} stored as {dtype[:20]!r}", " or ".join(_DTYPES), "a checkpoint that is not quantised")
        offset = self.size - self.left
        if math.prod(shape) * _DTYPES[dtype].itemsize != count or offset + count != begin + length:
            self.bad(f"{name!r} of shape {shape} in {count} bytes")
        if name in self.tensors:
            self.bad(f"{name!r} twice")
        self.pass_over(count)
        self.file.seek(count, 1)
        self.tensors[name] = Stored(self.path, offset, _DTYPES[dtype], shape)
