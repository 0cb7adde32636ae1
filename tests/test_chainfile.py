"""A chain file comes back bit for bit; anything else in its place is one InputError, whatever its bytes."""

import io
import json
import pickle
import struct
import tempfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as hs

import spectral_theorem as st
from spectral_theorem import chainfile
from spectral_theorem.chainfile import load_chain, save_chain

RNG = np.random.default_rng(3)
W, G, G0 = (RNG.normal(size=shape) for shape in ((3, 2, 2), (3, 2, 4), (2, 4)))


def npy(array, version=(1, 0)):
    """Return the bytes of one .npy member."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), version=version)
    return buffer.getvalue()


def header(descr, shape, data=b""):
    """Return .npy bytes whose header may lie about the data behind it."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(path, *members, compression=zipfile.ZIP_STORED):
    """Write (name, bytes) members to a zip."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore")  # a duplicate name is what one test wants
        for name, data in members:
            file.writestr(name, data)
    return path


def with_meta(path, meta):
    text = meta if isinstance(meta, str) else json.dumps(meta)
    return archive(path, ("propagators.npy", npy(W)), ("meta.npy", npy(text)))


def refusal(path, **options):
    """Return the one line with which a file is refused."""
    with pytest.raises(st.InputError) as caught:
        load_chain(path, **options)
    text = str(caught.value)
    assert "\n" not in text and "; expected " in text and "; try " in text
    return text


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parts", [(W,), (W, G), (W, G, G0), (W, None, G0)])
def test_arrays_come_back_bit_for_bit(tmp_path, dtype, parts):
    chain = st.LayerChain(*(None if a is None else jnp.asarray(a, dtype) for a in parts))
    back, meta = load_chain(save_chain(tmp_path / "c.npz", chain))
    for name in ("propagators", "injections", "initial"):
        old, new = getattr(chain, name), getattr(back, name)
        assert (old is None) == (new is None)
        if old is not None:
            assert old.dtype == new.dtype and np.array_equal(old, new)
    assert set(meta) == {"schema", "created_by"} and meta["schema"] == 1


def test_meta_comes_back(tmp_path):
    limits = st.Thresholds(purity=0.5)
    file = save_chain(
        tmp_path / "c.npz", st.LayerChain(W), {"claim": "c2", "note": "ξ ≪ 1\n\N{MUSICAL SYMBOL G CLEF}"},
        expected=st.Verdict.VIOLATED, thresholds=limits, margin=np.float64(-0.25),
        slack=float("nan"), shape=np.arange(3),
    )  # fmt: skip
    _, meta = load_chain(file)
    assert meta["claim"] == "c2" and meta["expected"] == "VIOLATED" and meta["margin"] == -0.25
    assert meta["note"] == "ξ ≪ 1\n\N{MUSICAL SYMBOL G CLEF}" and meta["shape"] == [0, 1, 2]
    assert st.Thresholds(**meta["thresholds"]) == limits
    assert meta["slack"] is None and meta["nulls"] == [{"path": "slack", "reason": "nan"}]
    # What was read can be written again, under this version's name.
    assert load_chain(save_chain(file, st.LayerChain(W), meta))[1] == meta


def test_whole_numbers_serve_as_thresholds(tmp_path):
    file = with_meta(tmp_path / "c.npz", {"schema": 1, "thresholds": {"gain": 2}})
    assert st.Thresholds(**load_chain(file)[1]["thresholds"]).gain == 2.0


def test_the_same_chain_gives_the_same_bytes(tmp_path):
    files = [save_chain(tmp_path / name, st.LayerChain(W, G), note="x") for name in ("a.npz", "b.npz")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_numpy_reads_ours_and_ours_reads_numpys(tmp_path):
    with np.load(save_chain(tmp_path / "c.npz", st.LayerChain(W, G), note="x"), allow_pickle=False) as file:
        assert np.array_equal(file["propagators"], W) and json.loads(str(file["meta"]))["note"] == "x"
    np.savez_compressed(tmp_path / "d.npz", propagators=np.asfortranarray(W), injections=G.astype(">f8"))
    chain, meta = load_chain(tmp_path / "d.npz")
    assert np.array_equal(chain.propagators, W) and np.array_equal(chain.injections, G) and meta == {"schema": 1}
    np.savez(tmp_path / "e.npz", propagators=W, meta=np.frombuffer(b'{"schema": 1, "note": "x"}', np.uint8))
    assert load_chain(tmp_path / "e.npz")[1]["note"] == "x"


def test_what_cannot_be_saved_is_refused(tmp_path):
    chain, file = st.LayerChain(W), tmp_path / "c.npz"
    batch = jax.vmap(lambda w: st.LayerChain(w))(jnp.stack([W, W]))
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for arguments, more, expected in [
        ((file, batch), {}, "not a batch"),
        ((tmp_path, chain), {}, "the folder"),
        ((tmp_path / "none" / "c.npz", chain), {}, "No such file"),
        ((file, chain), {"note": 3}, "text in note"),
        ((file, chain), {"note": "x" * 2**19}, "at most"),
        ((file, chain), {"made": object()}, "JSON cannot hold"),
        ((file, chain), {"made": deep}, "JSON cannot hold"),
        ((file, chain), {"expected": "PERHAPS"}, "one of"),
        ((file, chain), {"thresholds": {"purity": -1.0}}, "> 0"),
        ((file, chain), {"schema": 2}, "schema 1"),
    ]:
        with pytest.raises(st.InputError, match=expected) as caught:
            save_chain(*arguments, **more)
        assert "\n" not in str(caught.value)
    with pytest.raises(st.InputError, match="inside jit"):
        jax.jit(lambda w: save_chain(file, st.LayerChain(w)))(W)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = save_chain(tmp_path / "c.npz", st.LayerChain(W), note="old")
    before = file.read_bytes()

    def full(member, array, **_):
        member.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chainfile.np.lib.format, "write_array", full)
    with pytest.raises(st.InputError, match="No space left"):
        save_chain(file, st.LayerChain(2 * W))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_paths_that_are_no_file(tmp_path):
    assert "no file" in refusal(tmp_path / "none.npz")
    assert "not a file" in refusal(tmp_path)
    assert "no file" in refusal("a\0b")
    assert "one\\nline" in refusal(tmp_path / "one\nline")


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "c.npz"
    for data in (b"", b"PK", b"hello", pickle.dumps(W), npy(W)):
        path.write_bytes(data)
        assert "not a zip" in refusal(path)


def test_every_truncation_is_refused(tmp_path):
    whole = save_chain(tmp_path / "c.npz", st.LayerChain(W, G, G0), note="x").read_bytes()
    path = tmp_path / "cut.npz"
    for n in range(0, len(whole), 61):
        path.write_bytes(whole[:n])
        refusal(path)


MEMBERS = {
    "pickle": ([("propagators.npy", npy(np.array([{}], dtype=object)))], "nothing is unpickled"),
    "unknown": ([("propagators.npy", npy(W)), ("run.py", b"")], "no members but"),
    "parent": ([("../propagators.npy", npy(W))], "no members but"),
    "nested": ([("a/propagators.npy", npy(W))], "no members but"),
    "twice": ([("propagators.npy", npy(W)), ("propagators.npy", npy(2 * W))], "twice"),
    "none": ([], "without propagators"),
    "no propagators": ([("injections.npy", npy(G))], "without propagators"),
    "not npy": ([("propagators.npy", b"hello")], "cannot be read"),
    "empty": ([("propagators.npy", b"")], "cannot be read"),
    "version 2": ([("propagators.npy", npy(W, (2, 0)))], "version (1, 0)"),
    "huge": ([("propagators.npy", header("<f8", (2**40, 2**20, 2**20)))], "in 0 bytes"),
    "negative": ([("propagators.npy", header("<f8", (-1, 2, 2), b"x" * 32))], "whole numbers"),
    "bool": ([("propagators.npy", header("<f8", (True, 1, 1), b"x" * 8))], "whole numbers"),
    "trailing": ([("propagators.npy", npy(W) + b"x")], "in 97 bytes"),
    "struct": ([("propagators.npy", header([("a", "<f8")], (1, 1, 1), b"x" * 8))], "float32 or float64"),
    "subarray": ([("propagators.npy", header(("<f8", (10**9,)), (1, 1, 1)))], "expected"),
    "code": ([("propagators.npy", header("__import__('os')", (1, 1, 1)))], "cannot be read"),
    "unclosed": ([("propagators.npy", b"\x93NUMPY\x01\x00\x02\x00((")], "cannot be read"),
    "rank": ([("propagators.npy", npy(W[0]))], "rank 3"),
    "square": ([("propagators.npy", npy(G))], "square"),
    "layers": ([("propagators.npy", npy(W)), ("injections.npy", npy(G[:2]))], "L=3"),
    "float16": ([("propagators.npy", npy(W.astype("float16")))], "float32 or float64"),
    "integer": ([("propagators.npy", npy(W.astype("int64")))], "float32 or float64"),
    "complex": ([("propagators.npy", npy(W.astype("complex128")))], "float32 or float64"),
    "nan": ([("propagators.npy", npy(W * np.nan))], "non-finite"),
    "no layer": ([("propagators.npy", npy(W[:0]))], "empty"),
    "mixed": ([("propagators.npy", npy(W)), ("injections.npy", npy(G.astype("float32")))], "one dtype"),
    "long note": ([("propagators.npy", npy(W)), ("meta.npy", npy("x" * 2**19))], "shorter note"),
    "meta rank": ([("propagators.npy", npy(W)), ("meta.npy", npy(["{}", "{}"]))], "not JSON"),
    "meta code points": ([("propagators.npy", npy(W)), ("meta.npy", header("<U1", (), b"\xff" * 4))], "not JSON"),
    "meta bytes": ([("propagators.npy", npy(W)), ("meta.npy", npy(np.array([255], np.uint8)))], "not JSON"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_unsound_members_are_refused(tmp_path, name):
    members, expected = MEMBERS[name]
    assert expected in refusal(archive(tmp_path / "c.npz", *members))


METAS = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("1" * 5000, "not JSON"),
    ([], "JSON object"),
    ({}, "schema 'None'"),
    ({"schema": 2}, "schema '2'"),
    ({"schema": True}, "schema 'True'"),
    ({"schema": "1"}, "schema '1'"),
    ('{"schema": 1, "margin": NaN}', "strict JSON"),
    ({"schema": 1, "claim": 3}, "text in claim"),
    ({"schema": 1, "expected": "PERHAPS"}, "one of UNDECIDED"),
    ({"schema": 1, "expected": ["HOLDS"]}, "one of UNDECIDED"),
    ({"schema": 1, "thresholds": [1]}, "JSON object"),
    ({"schema": 1, "thresholds": {"luck": 1}}, "'luck'"),
    ({"schema": 1, "thresholds": {"purity": "0.1"}}, "finite number"),
    ({"schema": 1, "thresholds": {"purity": 0}}, "finite number"),
    ({"schema": 1, "thresholds": {"purity": None}}, "finite number"),
    ({"schema": 1, "thresholds": {"purity": 10**400}}, "finite number"),
    ('{"schema": 1, "thresholds": {"purity": 1e999}}', "finite number"),
]


@pytest.mark.parametrize(("meta", "expected"), METAS, ids=lambda x: str(x)[:40])
def test_unsound_meta_is_refused(tmp_path, meta, expected):
    assert expected in refusal(with_meta(tmp_path / "c.npz", meta))


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path):
    zeros = npy(np.zeros((64, 256, 256)))
    path = archive(tmp_path / "c.npz", ("propagators.npy", zeros), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < len(zeros) / 500
    tracemalloc.start()
    assert "at most 1000000" in refusal(path, limit_bytes=10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6
    assert load_chain(path, limit_bytes=len(zeros))[0].depth == 64


def test_other_compressions_and_encryption_are_refused(tmp_path):
    path = archive(tmp_path / "c.npz", ("propagators.npy", npy(W)), compression=zipfile.ZIP_LZMA)
    assert "stored or deflated" in refusal(path)
    data = bytearray(archive(path, ("propagators.npy", npy(W))).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the encryption flag in the central directory
    path.write_bytes(data)
    assert "encrypted" in refusal(path)


@pytest.mark.parametrize("size", [2**20, 2**31])
def test_a_declared_size_that_cannot_be_true_is_refused(tmp_path, size):
    data = bytearray(archive(tmp_path / "c.npz", ("propagators.npy", npy(W))).read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    (tmp_path / "c.npz").write_bytes(data)
    assert "a size that can be true" in refusal(tmp_path / "c.npz")


def test_a_flipped_bit_in_the_numbers_is_found(tmp_path):
    data = bytearray(save_chain(tmp_path / "c.npz", st.LayerChain(W)).read_bytes())
    data[data.index(W.tobytes()) + 5] ^= 1
    (tmp_path / "c.npz").write_bytes(data)
    assert "CRC" in refusal(tmp_path / "c.npz")


def test_float64_needs_the_64_bit_mode(tmp_path):
    file = save_chain(tmp_path / "c.npz", st.LayerChain(W))
    with jax.enable_x64(False):
        assert "64-bit mode" in refusal(file)


SOUND = {}
with tempfile.TemporaryDirectory() as _folder:
    for _name, _chain in {"small": st.LayerChain(W[:1]), "whole": st.LayerChain(W, G, G0)}.items():
        SOUND[_name] = save_chain(Path(_folder) / "c.npz", _chain, note="x", thresholds=st.Thresholds()).read_bytes()
    np.savez_compressed(Path(_folder) / "d.npz", propagators=W)
    SOUND["deflated"] = (Path(_folder) / "d.npz").read_bytes()


def survives(data):
    """Load bytes: a chain and its meta, or one InputError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.npz"
        path.write_bytes(data)
        try:
            chain, meta = load_chain(path, limit_bytes=2**24)
        except st.InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        else:
            assert isinstance(chain, st.LayerChain) and meta["schema"] == 1


@given(hs.binary(max_size=400))
@example(b"PK\x05\x06" + b"\0" * 18)
def test_random_bytes_never_crash_it(data):
    survives(data)


@given(
    hs.sampled_from(sorted(SOUND)),
    hs.lists(hs.tuples(hs.integers(0, 10**4), hs.integers(0, 255)), max_size=4),
    hs.data(),
)
def test_mutated_files_never_crash_it(name, edits, data):
    """Overwrite, delete, repeat: also with the checksums mended, so that the inside is reached."""
    mutant = bytearray(SOUND[name])
    for at, byte in edits:
        mutant[at % len(mutant)] = byte
    start, stop = sorted(data.draw(hs.tuples(hs.integers(0, len(mutant)), hs.integers(0, len(mutant))), label="cut"))
    how = data.draw(hs.sampled_from(["keep", "delete", "repeat"]), label="how")
    if how != "keep":
        mutant[start:stop] = b"" if how == "delete" else mutant[start:stop] * 2
    survives(bytes(mutant))


@given(
    hs.lists(hs.tuples(hs.integers(0, 127), hs.integers(0, 255)), min_size=1, max_size=4),
    hs.sampled_from(["propagators", "meta"]),
)
def test_mutated_headers_behind_sound_checksums_never_crash_it(edits, where):
    members = {"propagators": bytearray(npy(W)), "meta": bytearray(npy('{"schema": 1}'))}
    for at, byte in edits:
        members[where][at] = byte
    buffer = io.BytesIO()
    archive(buffer, *((f"{name}.npy", bytes(data)) for name, data in members.items()))
    survives(buffer.getvalue())
