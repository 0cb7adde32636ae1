"""Record what the reference implementation computes, for tests that run without it.

    python scripts/make_parity_outputs.py        needs the parity extra; rewrites tests/parity/outputs/

Inputs and weights are made from seeds on both sides (tests/parity/parity_cases.py), so only
outputs are stored.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))

import reference
from parity_cases import CASES, KEPT_FRAMES, OUTPUTS


def main() -> None:
    """Write one file per random model and one for the log-mel features."""
    OUTPUTS.mkdir(exist_ok=True)
    made_with = np.asarray([f"{name} {version(name)}" for name in ("torch", "transformers", "numpy")])
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            outputs = reference.run_case(case, Path(folder))
        np.savez_compressed(OUTPUTS / f"{case.name}.npz", made_with=made_with, **outputs)
    features = {}
    for n_mels in (80, 128):
        by_numpy, by_torch = reference.log_mel(n_mels)
        features[f"numpy_{n_mels}"], features[f"torch_{n_mels}"] = by_numpy[:, KEPT_FRAMES], by_torch[:, KEPT_FRAMES]
    np.savez_compressed(OUTPUTS / "log_mel.npz", made_with=made_with, **features)
    for file in sorted(OUTPUTS.glob("*.npz")):
        print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
