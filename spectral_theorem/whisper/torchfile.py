"""Read OpenAI's `.pt` checkpoints without PyTorch, and without unpickling anything.

The file is a zip archive: one pickle, and one stored member for the bytes of every storage. A pickle
is a program. It runs here on a machine of our own that knows some thirty instructions and four
callables, all of which build plain values; whatever else it asks for is refused by name. Python's own
unpickler would also be held to an allow-list, but can be made to allocate without bound or to hash
for ever before any list is consulted.
"""

import functools
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from ..types import InputError, refuse
from .dims import Dims
from .tensors import Stored, opened, some

_LARGEST_PICKLE = 1 << 20
_MOST_MEMBERS = 1 << 16
_LOCAL_HEADER = 30
_STORAGES = {
    "torch DoubleStorage": np.dtype(np.float64),
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
}
_TENSOR, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_SIZES = {
    "n_mels": "mels",
    "n_audio_ctx": "frames",
    "n_audio_state": "width",
    "n_audio_head": "encoder_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocabulary",
    "n_text_ctx": "positions",
    "n_text_state": "width",
    "n_text_head": "decoder_heads",
    "n_text_layer": "decoder_layers",
}
_HIDDEN_PER_WIDTH = 4


class _Name(str):
    """Stand for an allowed global; it calls nothing."""


class _Storage(NamedTuple):
    """Hold what the pickle says of one storage."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """Hold what the pickle says of one tensor."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def read_torch(path: Path) -> tuple[Dims, dict[str, Stored]]:
    """Read sizes and the places of all tensors of an OpenAI checkpoint; no tensor is read.

    Parameters
    ----------
    path : the file.

    Returns
    -------
    dims : from its `dims`.
    tensors : from its `model_state_dict`, name to place.

    Raises
    ------
    InputError
        If the file is no zip archive of PyTorch, is damaged or compressed, states sizes that it has
        no room for, or if its pickle asks for anything but tensors of floats in dicts.

    Notes
    -----
    Tensors may be strided views, as PyTorch keeps them; together they may not be larger than the
    file, so that views of one storage cannot multiply it.
    """
    if not path.is_file():
        refuse(f"{path}, which is not a file", "an OpenAI checkpoint", "the .pt file itself")
    bad = functools.partial(refuse, expected="a whole OpenAI checkpoint", hint="downloading it again")
    members = _members(path, bad)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        bad(f"{path} with {len(pickles)} pickles")
    root = pickles[0].removesuffix("data.pkl")
    with opened(path) as file:
        order = _content(file, members.get(f"{root}byteorder", (0, 0)), 16)
        if order not in (b"", b"little"):
            refuse(f"{path} in {order.decode('latin-1')!r} byte order", "little-endian weights", "another checkpoint")
        if members[pickles[0]][1] > _LARGEST_PICKLE:
            bad(f"{path} with a pickle of {members[pickles[0]][1]} bytes")
        program = _content(file, members[pickles[0]], _LARGEST_PICKLE)
    try:
        value = _run(program, path)
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError) as error:
        bad(f"{path} whose pickle is damaged ({type(error).__name__})")
    entries = value if isinstance(value, dict) else {}
    sizes, state = entries.get("dims"), entries.get("model_state_dict")
    if not isinstance(sizes, dict) or not isinstance(state, dict):
        refuse(f"{path} without dims and model_state_dict", "an OpenAI checkpoint", "a .pt that openai-whisper loads")
    tensors = {name: _placed(path, root, name, tensor, members) for name, tensor in state.items()}
    total = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if total > path.stat().st_size:
        bad(f"{path} whose tensors are larger than the file")
    return _dims(path, sizes), tensors


def _members(path: Path, bad: Callable[[str], NoReturn]) -> dict[str, tuple[int, int]]:
    """Return place and size of every member's bytes, after checking that the file has room for them."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged directory surfaces as any of several exceptions
        said = " ".join(str(error).split())[:60]
        bad(f"{path}, no zip archive ({said or type(error).__name__})")
    if len(entries) > _MOST_MEMBERS or sum(entry.file_size for entry in entries) > size:
        bad(f"{path} of {size} bytes with members that do not fit in it")
    members = {}
    with opened(path) as file:
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                refuse(f"{path} with a compressed member", "stored members, as torch.save writes them", "another copy")
            if not 0 <= entry.header_offset < size:
                bad(f"{path} whose directory points outside the file")
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER)
            if header[:4] != b"PK\3\4" or len(header) < _LOCAL_HEADER:
                bad(f"{path} whose directory points beside its members")
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            begin = entry.header_offset + _LOCAL_HEADER + names
            if begin + entry.file_size > size or entry.filename in members or entry.flag_bits & 1:
                bad(f"{path} with a member that is cut, doubled or encrypted")
            members[entry.filename] = (begin, entry.file_size)
    return members


def _content(file: Any, member: tuple[int, int], most: int) -> bytes:
    file.seek(member[0])
    return file.read(min(member[1], most))


def _run(program: bytes, path: Path) -> Any:
    """Run a pickle on a machine that builds dicts, tuples, lists, numbers, names and tensors only."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for code, argument, _ in pickletools.genops(program):
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[code.name]())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = tuple(stack.pop() for _ in range(int(code.name[-1])))
                stack.append(items[::-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "GLOBAL":
                stack.append(_allowed(str(argument), path))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(f"{str(module)[:80]} {str(name)[:80]}", path))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_made(called, arguments))
            case "BUILD":
                stack.pop()  # what torch hangs on the dict, versions of modules, is dropped
            case "SETITEM" | "SETITEMS":
                items = since_mark() if code.name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
                _fill(stack[-1], items)
            case "APPEND" | "APPENDS":
                items = since_mark() if code.name == "APPENDS" else [stack.pop()]
                if type(stack[-1]) is not list:
                    raise TypeError
                stack[-1].extend(items)
            case "STOP":
                return stack.pop()
            case _:
                refuse(
                    f"{path} whose pickle uses {code.name}",
                    "dicts of tensors, nothing else",
                    "the publisher's own file",
                )
    raise ValueError


def _allowed(name: str, path: Path) -> _Name:
    if name not in (_TENSOR, _ORDERED, *_STORAGES):
        refuse(
            f"{path} whose pickle asks for {'.'.join(name.split())[:80]!r}, which was not run",
            "tensors of floats only",
            "the publisher's own file",
        )
    return _Name(name)


def _storage(value: Any) -> _Storage:
    kind, dtype, key, _, count = value
    if kind != "storage" or type(dtype) is not _Name or type(key) is not str or type(count) is not int:
        raise TypeError
    return _Storage(_STORAGES[dtype], key, count)


def _made(called: Any, arguments: Any) -> Any:
    if type(called) is not _Name or type(arguments) is not tuple:
        raise TypeError
    if called == _ORDERED and not arguments:
        return {}
    if called == _TENSOR:
        return _Tensor(*arguments[:4])
    raise TypeError


def _fill(target: Any, items: list[Any]) -> None:
    if type(target) is not dict or not all(type(key) is str for key in items[::2]):
        raise TypeError
    target.update(zip(items[::2], items[1::2], strict=True))


def _placed(path: Path, root: str, name: str, tensor: Any, members: dict[str, tuple[int, int]]) -> Stored:
    """Turn what the pickle says of a tensor into a place in the file that was found to hold it."""

    def bad(what: str) -> NoReturn:
        refuse(f"{path} with {some([name])} {what}", "a whole OpenAI checkpoint", "downloading it again")

    if type(tensor) is not _Tensor or type(tensor.storage) is not _Storage:
        bad("that is no tensor")
    dtype, key, count = tensor.storage
    begin, size = members.get(f"{root}data/{key}", (0, -1))
    numbers = (tensor.offset, *tensor.shape, *tensor.strides) if _are_tuples(tensor) else (None,)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(tensor.shape) != len(tensor.strides):
        bad("of malformed shape")
    if count * dtype.itemsize != size:
        bad(f"whose storage of {count} numbers has {max(size, 0)} bytes")
    elements = math.prod(tensor.shape)
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True)) if elements else -1
    if elements > count or tensor.offset + last >= count:
        bad(f"of shape {tensor.shape} beyond its storage of {count} numbers")
    return Stored(path, begin + tensor.offset * dtype.itemsize, dtype, tensor.shape, tensor.strides)


def _are_tuples(tensor: _Tensor) -> bool:
    return type(tensor.shape) is tuple and type(tensor.strides) is tuple


def _dims(path: Path, sizes: dict[str, Any]) -> Dims:
    """Read the sizes of an OpenAI checkpoint."""
    bad = functools.partial(refuse, expected="the sizes of a Whisper", hint="a .pt that openai-whisper loads")
    if not all(type(sizes.get(key)) is int for key in _SIZES):
        bad(f"{path} whose dims lack {some([key for key in _SIZES if type(sizes.get(key)) is not int])}")
    if sizes["n_audio_state"] != sizes["n_text_state"]:
        bad(f"{path} with widths {sizes['n_audio_state']} and {sizes['n_text_state']}")
    hidden = _HIDDEN_PER_WIDTH * sizes["n_text_state"]
    named = {name: sizes[key] for key, name in _SIZES.items()}
    return Dims(**named, encoder_hidden=hidden, decoder_hidden=hidden)
