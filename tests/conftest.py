"""Fixtures of the whole suite; the numerical environment is set in the root conftest."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Give the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of models and recordings beside the checkout, or skip.

    A run that must not skip sets SPECTRAL_THEOREM_REQUIRE_SHARED=1; then a missing folder fails.
    """
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        reason = f"no folder of models and recordings at {folder}"
        if os.environ.get("SPECTRAL_THEOREM_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
