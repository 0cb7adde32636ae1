"""Find a model of the Hugging Face Hub: in the local cache first, then by download.

Only what `load` reads is fetched, and never a pickle. Nothing here is imported until a name is asked for.
"""

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from ..types import InputError, refuse
from .formats import FLAX_FILE, INDEX, SAFETENSORS_FILE, weights_of
from .tensors import read_json

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,96})?")
_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json")
_SHARD = re.compile(r"(flax_)?model-\d+-of-\d+\.(safetensors|msgpack)")
_LONGEST_REASON = 100
_PATIENCE = 10.0  # seconds until a Hub that does not answer counts as no network


@dataclasses.dataclass(frozen=True)
class Cached:
    """Describe one model in the local cache.

    Parameters
    ----------
    name : on the Hub.
    commit : revision of the files.
    folder : where they lie; `load` takes it as well.
    size : bytes.
    """

    name: str
    commit: str
    folder: Path
    size: int


def is_name(text: str) -> bool:
    """Say whether a text has the form of a name on the Hub, `owner/model` or `owner/model@revision`.

    Examples
    --------
    >>> is_name("openai/whisper-tiny"), is_name("a/b@main"), is_name("./a/b"), is_name("folder")
    (True, True, False, False)
    """
    return bool(_NAME.fullmatch(text)) and not text.startswith((".", "/")) and "/." not in text


def fetch(name: str) -> Path:
    """Return the local folder of a model of the Hub, downloading what is not there.

    Parameters
    ----------
    name : `owner/model`, or `owner/model@revision` with a branch, tag or commit.

    Returns
    -------
    Path
        Folder of the snapshot in the Hub's own cache; its name is the commit.

    Raises
    ------
    InputError
        If `huggingface-hub` is not installed; if the model is not in the cache and the Hub may not be
        asked (`HF_HUB_OFFLINE=1`), cannot be reached, or does not know it; if it has no weights
        in a form that is safe to read.

    Notes
    -----
    A complete snapshot in the cache is used without asking whether the Hub has a newer one; name a
    revision to be sure which is meant.
    """
    hub = _package()
    repository, _, revision = name.partition("@")
    get = functools.partial(hub.snapshot_download, repository, revision=revision or None)
    try:
        folder = Path(get(local_files_only=True))
    except Exception:  # which one says "not here" differs between versions of the package
        folder = None
    if folder and _complete(folder) and ((folder / "tokenizer.json").exists() or offline()):
        return folder
    if offline():
        refuse(
            f"{name}, not in the local cache, while offline",
            "a cached model, or the network",
            "unsetting HF_HUB_OFFLINE once, or the path of a folder",
        )
    try:
        listing = hub.HfApi().model_info(repository, revision=revision or None, timeout=_PATIENCE)
        wanted = wanted_files([file.rfilename for file in listing.siblings or ()])
    except Exception as error:  # the HTTP library whose exceptions surface here differs between versions
        _explain(name, error)
    if not wanted:
        refuse(f"{name} without {SAFETENSORS_FILE} or {FLAX_FILE}", "a Whisper in a safe form", "another name")
    try:
        return Path(get(allow_patterns=wanted))
    except Exception as error:  # as above
        _explain(name, error)


def _complete(folder: Path) -> bool:
    """Say whether config and weights, every shard of them, lie in a snapshot; a download may have been cut."""
    weights = weights_of(folder)
    if weights is None or not (folder / "config.json").exists():
        return False
    if not weights.name.endswith(INDEX):
        return True
    try:
        shards = read_json(weights).get("weight_map")
    except InputError:
        return False
    return isinstance(shards, dict) and all((folder / str(name)).exists() for name in shards.values())


def offline() -> bool:
    """Say whether the Hub may not be asked: HF_HUB_OFFLINE is set to 1, true, yes or on."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def wanted_files(files: list[str]) -> list[str]:
    """Choose from the files of a repository what `load` reads; safetensors before Flax, nothing without weights.

    Examples
    --------
    >>> wanted_files(["config.json", "README.md", "model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
    ['config.json', 'model.safetensors']
    >>> wanted_files(["config.json", "pytorch_model.bin"])
    []
    """
    beside = [file for file in _BESIDE if file in files]
    for single in (SAFETENSORS_FILE, FLAX_FILE):
        if single in files:
            return [*beside, single]
        if single + INDEX in files:
            ending = single.rpartition(".")[2]
            return [*beside, single + INDEX, *(f for f in files if _SHARD.fullmatch(f) and f.endswith(ending))]
    return []


def cached() -> list[Cached]:
    """List the Whisper models in the local cache that have a config and weights `load` can read.

    Returns
    -------
    list of Cached
        Sorted by name; empty where there is no cache.

    Raises
    ------
    InputError
        If `huggingface-hub` is not installed.
    """
    hub = _package()
    try:
        repositories = hub.scan_cache_dir().repos
    except hub.CacheNotFound:
        return []
    found = [
        Cached(repository.repo_id, revision.commit_hash, Path(revision.snapshot_path), revision.size_on_disk)
        for repository in repositories
        if repository.repo_type == "model"
        for revision in repository.revisions
        if weights_of(Path(revision.snapshot_path)) and _says_whisper(Path(revision.snapshot_path) / "config.json")
    ]
    return sorted(found, key=lambda entry: (entry.name, entry.commit))


def _says_whisper(config: Path) -> bool:
    try:
        return read_json(config).get("model_type") == "whisper"
    except InputError:
        return False


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        refuse(
            "a name on the Hub and no `huggingface-hub` package",
            "the hub extra, or the path of a folder",
            "pip install 'spectral-theorem[hub]'",
        )
    return huggingface_hub


def _explain(name: str, error: Exception) -> NoReturn:
    """Say in one line why the Hub did not deliver."""
    kind = type(error).__name__
    said = " ".join(str(error).split())[:_LONGEST_REASON]
    if kind == "RevisionNotFoundError":
        refuse(f"{name}, a revision that the Hub does not know", "a branch, tag or commit", name.partition("@")[0])
    if kind in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError", "DisabledRepoError"):
        refuse(
            f"{name}, which the Hub does not know or does not give out",
            "the name of a public model",
            "spectral-theorem models, or huggingface-cli login",
        )
    refuse(
        f"{name}, not in the local cache, and no answer from the Hub ({kind}: {said})",
        "a cached model, or the network",
        "the path of a folder",
    )
