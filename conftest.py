"""Set the numerical environment before anything under test is imported.

This file stands at the root because doctests live in the package, which `tests/conftest.py` does
not cover when one module is tested alone.
"""

import os

# Read once, when NumPy and JAX load: unset, LAPACK is slow and erratic on few cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
from hypothesis import HealthCheck, settings

jax.config.update("jax_enable_x64", True)

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("automated", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("automated" if os.environ.get("CI") else "local")
