"""Set the numerical environment before anything under test is imported.

This file stands at the root because doctests live in the package, which `tests/conftest.py` does
not cover when one module is tested alone.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

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
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_enable_x64", True)

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("automated", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("automated" if os.environ.get("CI") else "local")

_MOST_MAPS = 15_000  # a process may hold 65,530 (vm.max_map_count), and XLA crashes where it is refused one


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """Let go of compiled programs between files: each holds memory maps, and a suite compiles thousands."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
