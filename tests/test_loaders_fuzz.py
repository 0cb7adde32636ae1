"""Damaged bytes: every loader refuses them in one line or reads finite weights, soon, and in little memory."""

import functools
import json
import time
import tracemalloc

import numpy as np
import pytest
from checkpoints import CONFIG, OPENAI_DIMS, by_path, flax_bytes, openai_bytes, turned
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from spectral_theorem.types import InputError
from spectral_theorem.whisper.checkpoint import parameter_shapes
from spectral_theorem.whisper.formats import open_checkpoint, reader
from spectral_theorem.whisper.layouts import stored_name

SECONDS = 5.0
FIXED, PER_BYTE = 1 << 20, 16  # what a loader may allocate: so much, and so much per byte of the file
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


def check(path, raw):
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
    assert peak < FIXED + PER_BYTE * len(raw)
    assert refused is None or ("\n" not in refused and len(refused) < 1000)
    return refused


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

    @settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
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
