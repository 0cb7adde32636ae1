"""Say what produced a record: versions, device, commit."""

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import __version__


def source_commit() -> str | None:
    """Name the commit of the running source, with a trailing "+" when it was edited since.

    Returns
    -------
    str or None
        None for an installed copy, which no repository tracks.

    Examples
    --------
    >>> commit = source_commit()
    >>> commit is None or len(commit.rstrip("+")) == 40
    True
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10)

    try:
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        commit = git("rev-parse", "HEAD").stdout.strip()
        edited = git("diff", "--quiet", "HEAD", "--", str(here.parent)).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{commit}+" if edited else commit


def source_digest() -> str:
    """Digest the source of the package, 16 hexadecimal digits: what a result depends on that no version names.

    Examples
    --------
    >>> source_digest() == source_digest()
    True
    """
    here = Path(__file__).resolve().parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Say what produced a record: versions, device, commit.

    Examples
    --------
    >>> sorted(environment())
    ['commit', 'device', 'platform', 'versions']
    """
    import jax
    import numpy

    device = jax.devices()[0]
    return {
        "versions": {
            "spectral_theorem": __version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "numpy": numpy.__version__,
        },
        "device": f"{device.platform}: {device.device_kind}",
        "platform": f"{sys.platform} {platform.machine()}",
        "commit": source_commit(),
    }


def free_memory() -> float:
    """Return the bytes that programs may still take, or inf where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        # what is free alone leaves out caches, which are given up when memory is asked for
        return float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    except (OSError, StopIteration):
        return float("inf")
