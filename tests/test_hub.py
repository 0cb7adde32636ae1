"""Names on the Hub: cache first, only safe files, and one line when there is no package, no model or no network."""

import json
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from checkpoints import flax_bytes, write, write_beside
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from spectral_theorem import cli, models, whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(name):
    with pytest.raises(InputError) as error:
        whisper.load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a Hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


def place(cache, name, fill, commit=COMMIT):
    """Put a snapshot where the Hub's package keeps it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    fill(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return folder


@pytest.fixture
def remote(cache, monkeypatch, tmp_path):
    """A Hub that holds one folder and counts what is asked of it."""
    source, asked = write(tmp_path / "remote"), []
    (source / "pytorch_model.bin").write_bytes(b"a pickle")

    class Api:
        def model_info(self, repository, **_):
            asked.append("listing")
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file.name) for file in source.iterdir()])

    genuine = huggingface_hub.snapshot_download

    def download(repository, *, allow_patterns=None, local_files_only=False, **options):
        if local_files_only:
            return genuine(repository, local_files_only=True, **options)
        asked.append(sorted(allow_patterns))
        copy = lambda folder: [shutil.copy(source / name, folder) for name in allow_patterns]
        return str(place(cache, repository, copy))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_model_is_fetched_once_and_no_pickle_with_it(remote):
    model = whisper.load("owner/model")
    assert model.label == "owner/model@01234567"
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert remote == ["listing", files]
    assert whisper.load("owner/model").label == model.label
    assert len(remote) == 2


def test_a_cached_model_needs_no_network(cache, monkeypatch):
    place(cache, "owner/model", write)
    assert whisper.load("owner/model").label == "owner/model@01234567"
    assert whisper.load(f"owner/model@{COMMIT}").label == "owner/model@01234567"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert whisper.load("owner/model").tokenizer is not None


def test_a_snapshot_without_all_its_shards_is_not_complete(cache, monkeypatch):
    def cut(folder):
        write_beside(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))

    place(cache, "owner/model", cut)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the local cache, while offline" in refused("owner/model")


def test_no_network(cache):
    assert "no answer from the Hub" in refused("owner/model")


def test_offline(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # would fail if it were asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "while offline" in refused("owner/model")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RepositoryNotFoundError, "does not know"),
        (RevisionNotFoundError, "a revision that the Hub does not know"),
        (HfHubHTTPError, "no answer from the Hub"),
        (TimeoutError, "no answer from the Hub"),
    ],
)
def test_what_the_hub_answers_becomes_one_line(cache, monkeypatch, kind, words):
    error = kind.__new__(kind)
    error.args = ("many\nlines",)

    class Api:
        def model_info(self, *_, **__):
            raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert words in refused("owner/model@v1")


def test_repositories_without_safe_weights(remote, tmp_path):
    (tmp_path / "remote" / "model.safetensors").unlink()
    assert "without model.safetensors or flax_model.msgpack" in refused("owner/model")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "spectral-theorem[hub]" in refused("owner/model")
    assert "spectral-theorem[hub]" in models.run().text


def test_names_and_paths_are_told_apart(cache, tmp_path, monkeypatch):
    write(tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    assert whisper.load("owner/model").label == "model"
    for path in ("./owner/none", "nothing", "/a/b", "../a/b", "a/b/c"):
        assert "not a folder, a file, or a name" in refused(path)


def test_shards_are_chosen_by_format():
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)] + ["model.safetensors.index.json"]
    flax = [f"flax_model-0000{i}-of-00002.msgpack" for i in (1, 2)] + ["flax_model.msgpack.index.json"]
    others = ["model.fp32-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin", "tf_model.h5", "x.py"]
    assert sorted(hub.wanted_files([*files, *flax, *others])) == sorted(files)
    assert sorted(hub.wanted_files([*flax, *others])) == sorted(flax)
    assert hub.wanted_files(others) == []


def test_the_verb_lists_what_is_known_and_what_is_cached(cache, capsys):
    def flax(folder):
        (write_beside(folder) / "flax_model.msgpack").write_bytes(flax_bytes())

    def damaged(folder):
        (write(folder) / "model.safetensors").write_bytes(b"cut")

    def bert(folder):
        (write(folder) / "config.json").write_text('{"model_type": "bert"}')

    place(cache, "a/whole", write)
    place(cache, "b/flax", flax)
    place(cache, "c/damaged", damaged)
    place(cache, "d/bert", bert)
    assert cli.main(["models", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(entry["name"], entry["loadable"]) for entry in record["cached"]] == [
        ("a/whole", True),
        ("b/flax", True),
        ("c/damaged", False),
    ]
    turbo = next(entry for entry in record["published"] if entry["name"] == "openai/whisper-large-v3-turbo")
    assert (turbo["mels"], turbo["decoder_layers"], turbo["languages"]) == (128, 4, 100)
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert "distil-whisper/distil-large-v3" in text and "c/damaged" in text


def test_offline_is_an_option_of_the_command_line(cache, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert cli.main(["measure", "owner/model", "clip.wav", "--offline"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "while offline" in said
