"""Damaged bytes: every loader refuses them in one line or reads finite weights, soon, and in little memory."""

import functools
import json
import struct
import time
import tracemalloc

import jaxtyping
import numpy as np
import pytest
from checkpoints import CONFIG, OPENAI_DIMS, archive, by_path, flax_bytes, openai_bytes, turned
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from spectral_theorem.types import InputError
from spectral_theorem.whisper.checkpoint import parameter_shapes
from spectral_theorem.whisper.formats import open_checkpoint, reader
from spectral_theorem.whisper.layouts import stored_name

SECONDS = 5.0
FIXED, PER_BYTE = 1 << 20, 16  # what a loader may allocate: so much, and so much per byte of the file
PER_HOSTILE_BYTE = 100  # the same for a file made of nothing but the smallest objects of its format
shapes_of = functools.lru_cache(parameter_shapes)


def original(kind):
    if kind == "safetensors":
        return save(turned(stored_name, by_path()))
    return flax_bytes() if kind == "msgpack" else openai_bytes()


ORIGINAL = {kind: original(kind) for kind in ("safetensors", "msgpack", "pt")}


@st.composite
def damaged(draw, kind):
    """Bytes of a valid file with a few of them changed, lost, inserted, repeated, or cut off."""
    raw = bytearray(ORIGINAL[kind])
    for _ in range(draw(st.integers(1, 4))):
        last = len(raw) - 1
        place = draw(st.integers(0, last))
        # Frames lie at the ends, numbers in the middle.
        at = draw(st.sampled_from([place, place % 300, max(0, last - place % 300)]))
        length = draw(st.sampled_from([1, 2, 4, 8, 40]))
        match draw(st.sampled_from(["flip", "set", "huge", "lose", "insert", "repeat", "cut"])):
            case "flip":
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                raw[at] = draw(st.integers(0, 255))
            case "huge":
                raw[at : at + length] = draw(st.sampled_from([b"\xff", b"\x7f", b"\x00", b"9"])) * length
            case "lose":
                del raw[at : at + length]
            case "insert":
                raw[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "repeat":
                raw[at:at] = raw[at : at + length] * draw(st.sampled_from([1, 2, 100]))
            case "cut":
                del raw[at:]
        if not raw:
            break
    return bytes(raw)


def read(path):
    """Read all of a checkpoint but into no model, which would cost more than everything else."""
    checkpoint = open_checkpoint(path)
    get = reader(checkpoint, shapes_of(checkpoint.dims))
    for place in shapes_of(checkpoint.dims):
        get(place)


def check(path, raw, per_byte=PER_BYTE):
    path.write_bytes(raw)
    start = time.process_time()
    tracemalloc.start()
    try:
        read(path)
        refused = None
    except InputError as error:
        refused = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - start < SECONDS
    assert peak < FIXED + per_byte * len(raw)
    assert refused is None or ("\n" not in refused and len(refused) < 1000)
    return refused


@pytest.fixture(scope="module", autouse=True)
def without_checks_of_annotations():
    """Other tests check them; here they would take most of the time, and memory that is not the loaders'."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for dims in (OPENAI_DIMS, open_checkpoint_dims(folder)):
        shapes_of(dims)
    return folder


def open_checkpoint_dims(folder):
    path = folder / "valid.safetensors"
    path.write_bytes(ORIGINAL["safetensors"])
    return open_checkpoint(path).dims


@pytest.mark.parametrize("kind", sorted(ORIGINAL))
def test_the_undamaged_file_is_read(folder, kind):
    assert check(folder / f"whole.{kind}", ORIGINAL[kind]) is None


@pytest.mark.parametrize("kind", sorted(ORIGINAL))
def test_damaged_files_are_read_or_refused(folder, kind):
    refusals = []

    @settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(damaged(kind))
    def run(raw):
        refusals.append(check(folder / f"damaged.{kind}", raw) is not None)

    run()
    assert np.mean(refusals) > 0.3  # the damage is damage


@pytest.mark.parametrize("kind", sorted(ORIGINAL))
@settings(max_examples=40)
@example(b"")
@given(st.binary(max_size=400))
def test_bytes_that_were_never_a_checkpoint(folder, kind, raw):
    assert check(folder / f"noise.{kind}", raw) is not None


@pytest.mark.parametrize("kind", sorted(ORIGINAL))
def test_truncation_is_refused(folder, kind):
    raw = ORIGINAL[kind]
    for length in {*range(0, len(raw), 1999), *range(len(raw) - 9, len(raw))}:
        assert check(folder / f"cut.{kind}", raw[:length]) is not None


def many(kind):
    """Yield files of some ten kilobytes and more that hold as many objects as fit."""
    count = 30_000
    if kind == "safetensors":
        for text in (b'{"a":[' + b"{}," * count + b"{}]}", b'{"__metadata__":[' + b"[]," * count + b"[]]}"):
            yield struct.pack("<Q", len(text)) + text
    elif kind == "msgpack":
        yield b"\xdf" + struct.pack(">I", count) + b"\xa1a\x80" * count
        yield b"\xde\xff\x00" + b"".join(b"\xa3" + f"{i:03x}"[-3:].encode() + b"\x80" for i in range(0xFF00))
    else:
        for opcode in (b"}", b"(", b"]", b"}q\0", b"K\1\x85", b"X\1\0\0\0a"):
            yield archive(b"\x80\x02" + opcode * count + b".", {})
        yield archive(b"\x80\x02}.", {str(i): b"" for i in range(2000)})


@pytest.mark.parametrize("kind", sorted(ORIGINAL))
def test_files_of_nothing_but_small_objects(folder, kind):
    for raw in many(kind):
        assert check(folder / f"many.{kind}", raw, PER_HOSTILE_BYTE) is not None
