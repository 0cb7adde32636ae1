"""Read safetensors files, indices of shards and JSON from a folder that is not to be trusted.

Sizes are compared before anything is allocated: the header with the file, every entry with the
header. Nothing but the header is read until a tensor is asked for.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..types import refuse

_LARGEST_JSON = 1 << 26
_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Say where one tensor lies.

    Parameters
    ----------
    file, offset : the file, and the place of the first byte.
    dtype, shape : little-endian floats, and their arrangement.
    strides : steps between neighbours along each axis, in elements; None where rows follow rows.
        Whoever gives strides has checked that the file holds what they span.
    """

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def read(self) -> np.ndarray:
        """Return the tensor.

        Raises
        ------
        InputError
            If the file has become shorter since its sizes were checked.
        """
        count = math.prod(self.shape)
        if self.strides is not None and count:
            count = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        # A copy in memory of our own: pages of a mapped file would count as ours, and pass on later damage.
        flat = np.fromfile(self.file, dtype=self.dtype, count=count, offset=self.offset)
        if flat.size != count:
            refuse(f"{self.file}, shorter than a moment ago", "a file that nobody writes to", "loading it again")
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = tuple(step * self.dtype.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object from a file of sane size."""
    if not path.is_file():
        refuse(f"{path.parent} without {path.name}", "the folder of a Whisper model", f"a folder with {path.name}")
    size = path.stat().st_size
    if size > _LARGEST_JSON:
        refuse(f"{path} of {size} bytes", f"at most {_LARGEST_JSON}", f"the model's own {path.name}")
    with opened(path) as file:
        return _parse(file.read(), path)


def opened(path: Path) -> Any:
    """Open a file for reading, or refuse it."""
    try:
        return path.open("rb")
    except OSError as error:
        refuse(f"{path}, which cannot be opened ({error.strerror})", "a readable file", f"ls -l {path}")


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"{path}, not JSON ({str(error)[:80]})", "a JSON object", "another copy of the file")
    if not isinstance(value, dict):
        refuse(f"{path} holding a {type(value).__name__}", "a JSON object", "another copy of the file")
    return value


def read_shards(index: Path, read: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    """Collect the tensors of the files that an index names.

    Parameters
    ----------
    index : JSON with a `weight_map` from tensor to file.
    read : reads the tensors of one file.
    """
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        refuse(f"{index} without a weight_map of file names", "an index of shards", "another copy of the file")
    tensors: dict[str, Stored] = {}
    for name in sorted(set(weights.values())):
        if Path(name).name != name or "\\" in name:
            refuse(f"{index} naming {name!r}", "files inside the folder", "an index with plain file names")
        tensors |= read(index.parent / name)
    lost = sorted(set(weights) - set(tensors))
    if lost:
        refuse(f"shards without {some(lost)}", "every tensor of the index", "all shards from one source")
    return tensors


def read_header(path: Path) -> dict[str, Stored]:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises
    ------
    InputError
        If the header does not fit the file: truncated, overlapping, of absurd size.
    """
    if not path.is_file():
        refuse(f"{path}, which is not a file", "a safetensors file", "all shards from one source")
    size = path.stat().st_size
    bad = functools.partial(refuse, expected="a whole safetensors file", hint="downloading it again")
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_JSON):
            bad(f"{path} of {size} bytes with a header of {length} bytes")
        header = _parse(file.read(length), path)
    header.pop("__metadata__", None)
    spans, tensors = [], {}
    for name, entry in header.items():
        tensor, end = _entry(path, name, entry, 8 + length, bad)
        spans.append((tensor.offset, end))
        tensors[name] = tensor
    reached = 8 + length
    for begin, end in sorted(spans):
        if begin != reached:
            bad(f"{path} with tensors that overlap or leave gaps")
        reached = end
    if reached != size:
        bad(f"{path} of {size} bytes whose header describes {reached}")
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int, bad: Callable[[str], Any]) -> tuple[Stored, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sane = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        sane, dtype, shape, begin, end = False, None, (), 0, 0
    if not sane:
        bad(f"{path} with a malformed entry for {name[:80]!r}")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        refuse(
            f"{name[:80]!r} stored as {str(dtype)[:20]!r}", " or ".join(_DTYPES), "a checkpoint that is not quantised"
        )
    if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
        bad(f"{path} where {name[:80]!r} of shape {shape} has {end - begin} bytes")
    return Stored(path, start + begin, _DTYPES[dtype], shape), start + end


def some(names: list[str], limit: int = 3) -> str:
    r"""Name the first few of many, on one line whatever they hold.

    Examples
    --------
    >>> print(some(["a", "b\n", "c", "d"]))
    a, b\n, c and 1 more
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name[:80])[1:-1] for name in names[:limit]) + more
