"""Put the last checkpoint of a training run into the package, in float16, with its record beside it.

    python scripts/carry_model.py RUN CORPUS...

RUN is the folder of a finished `spectral-theorem train`, CORPUS are the folders it was trained on: word error rates are
counted anew, on the weights as they are carried.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from spectral_theorem import carried
from spectral_theorem.corpus import read_words
from spectral_theorem.datasets import find
from spectral_theorem.train import RECORD, split, word_error_rate
from spectral_theorem.trainconfig import as_config
from spectral_theorem.whisper import load, save


def main(run: Path, corpora: list[Path]) -> None:
    """Write `spectral_theorem/carried/model/`."""
    record = json.loads((run / RECORD).read_text(encoding="utf-8"))
    if record["status"] != "done":
        sys.exit(f"{run} is not finished")
    shutil.rmtree(carried.MODEL, ignore_errors=True)
    save(load(run / record["checkpoint"]), carried.MODEL, dtype="float16")
    config = as_config(record["config"], run)
    words = split(read_words([clip for folder in corpora for clip in find(folder)]), config)
    model = load(carried.MODEL)
    sets = {"held_out_takes": words.held_out, "unseen_speaker": words.unseen}
    rates = {name: word_error_rate(model, part, config) for name, part in sets.items() if len(part)}
    record["word_error_rates"] = rates
    weights = (carried.MODEL / "model.safetensors").read_bytes()
    record["carried_sha256"] = hashlib.sha256(weights).hexdigest()
    record["dtype"] = "float16"
    (carried.MODEL / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rates, indent=1))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
