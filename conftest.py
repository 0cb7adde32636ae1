"""Set the numerical environment before anything under test is imported.

This file stands at the root because doctests live in the package, which `tests/conftest.py` does
not cover when one module is tested alone.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read once, when SciPy and JAX load: unset, LAPACK is slow and erratic on few cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Batched LAPACK calls that run at once hold one worker thread each while they wait for others: have more threads
# than `verify` has such calls, or it may wait for ever.
os.environ.setdefault("PJRT_NPROC", str(max(16 * min(os.cpu_count() or 1, 4), os.cpu_count() or 1)))
# A suite compiles much and runs little: this compiles four times as fast. An empty XLA_FLAGS tests what users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Compilation is most of the suite's time; doctests, tests and the command lines they start share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # thousands take hundredths

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_enable_x64", True)

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("automated", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("automated" if os.environ.get("CI") else "local")

_MOST_MAPS = 20_000  # a process may hold 65,530 (vm.max_map_count), and XLA crashes where it is refused one


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """Let go of compiled programs between files: each holds memory maps, and a suite compiles thousands."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


# Files that verify batches of the same shapes, or take the same decoder apart: what one has traced, compiled and found
# the next need not.
_TOGETHER = {
    f"tests/test_{name}.py": group
    for group, names in {
        "chains": "bounds claims conditions metamorphic negative path regimes triplets",
        "decoders": "engine rows sensitivity",
        "carried": "docs compared notebooks demo sensitivity_verb stepwise study",
        "sequences": "sequencewise scopes sequence",
    }.items()
    for name in names.split()
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Share out whole files, those of one group to one process, in the order in which they were collected."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return _TOGETHER.get(file, file)

    config.option.loadscopereorder = False
    return Together(config, log)


# What runs longest starts first: started last, it would leave the other processes with nothing to do.
_FIRST = [*_TOGETHER, *(f"tests/test_{name}.py" for name in ("wide", "falsify", "experiments", "measure", "train"))]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a user ask for more of each kind."""
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="add further shapes, element types and models of a kind of which one is always tested",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files; leave out what only an exhaustive run asks for."""
    rank = {file: place for place, file in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::", 1)[0], len(rank)))
    if not config.getoption("--exhaustive"):
        more = pytest.mark.skip(reason="one more of a kind: make test ARGS=--exhaustive")
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(more)
