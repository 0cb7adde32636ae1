"""Compare with openai-whisper's own model class and its own checkpoint layout, and record the result.

Usage: python scripts/parity_openai.py PYTHON [docs/benchmarks/parity_openai.json]

PYTHON is the interpreter of a virtual environment that holds torch and openai-whisper; this script's own needs
neither. That side makes random models, saves them as OpenAI does and computes logits; this side loads the `.pt`
files, computes logits from the same inputs, and compares. Control tokens and suppressed tokens are compared as well.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    # mels, audio positions, width, heads, layers; vocabulary, text positions, width, heads, layers
    "even": (80, 50, 64, 4, 2, 51_865, 32, 64, 4, 2),
    "english": (80, 40, 48, 2, 1, 51_864, 24, 48, 2, 3),
    "mels128": (128, 60, 96, 6, 3, 51_866, 40, 96, 6, 1),
}
THEIRS = """
import json, sys
import numpy as np, torch, whisper
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

folder, shapes = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(0)
said = {"versions": {"openai-whisper": whisper.__version__, "torch": torch.__version__}, "tokens": {}}
for name, shape in shapes.items():
    dims = ModelDimensions(*shape)
    model = Whisper(dims).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = 1.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "embedding" not in key else 0.3
            parameter.normal_(0.0, scale)
            if key.endswith(("ln.weight", "ln_post.weight")):
                parameter.add_(1.0)
    torch.save({"dims": dims.__dict__, "model_state_dict": model.state_dict()}, f"{folder}/{name}.pt")
    mel = torch.randn(2, dims.n_mels, 2 * dims.n_audio_ctx)
    tokens = torch.randint(0, dims.n_vocab, (2, 9))
    with torch.no_grad():
        states = model.encoder(mel)
        logits = model.decoder(tokens, states)
    arrays = {"mel": mel, "tokens": tokens, "states": states, "logits": logits}
    np.savez(f"{folder}/{name}.npz", **{key: array.numpy() for key, array in arrays.items()})
    multilingual = dims.n_vocab >= 51865
    tokenizer = get_tokenizer(multilingual, num_languages=dims.n_vocab - 51765 - int(multilingual))
    said["tokens"][name] = {
        "start": list(tokenizer.sot_sequence_including_notimestamps), "end": tokenizer.eot,
        "no_speech": tokenizer.no_speech, "blank": tokenizer.encode(" "),
        "suppress": sorted({*tokenizer.non_speech_tokens, tokenizer.transcribe, tokenizer.translate, tokenizer.sot,
                            tokenizer.sot_prev, tokenizer.sot_lm, tokenizer.no_speech}),
    }
print(json.dumps(said))
"""


def compare(folder: Path, name: str, tokens: dict[str, Any]) -> dict[str, Any]:
    """Load one of their checkpoints and return how far apart the two sides are."""
    import jax.numpy as jnp
    import numpy as np

    from spectral_theorem import whisper

    # Their sequence has no language and task unless told; ours names English and transcription.
    model = whisper.load(folder / f"{name}.pt")
    with np.load(folder / f"{name}.npz") as file:
        theirs = dict(file)
    states = model.encode(jnp.asarray(theirs["mel"]))
    logits = model.logits(jnp.asarray(theirs["tokens"]), states)
    generation = model.generation
    difference = lambda ours, other: float(np.abs(np.asarray(ours) - other).max())
    return {
        "dims": model.dims.to_config(),
        "max_abs_states": float(np.abs(theirs["states"]).max()),
        "max_abs_logits": float(np.abs(theirs["logits"]).max()),
        "states_difference": difference(states, theirs["states"]),
        "logits_difference": difference(logits, theirs["logits"]),
        "control_tokens_equal": {
            "start": generation.prompt[0] == tokens["start"][0] and generation.prompt[-1] == tokens["start"][-1],
            "end": generation.end == tokens["end"],
            "no_speech": generation.no_speech == tokens["no_speech"],
            "suppress": sorted(generation.suppress) == tokens["suppress"],
            "suppress_first": sorted(generation.suppress_first) == sorted([*tokens["blank"], tokens["end"]]),
        },
    }


def main(interpreter: str, target: Path) -> None:
    """Run both sides and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [interpreter, "-c", THEIRS, folder, json.dumps(SHAPES)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr)
        theirs = json.loads(run.stdout.splitlines()[-1])
        cases = {name: compare(Path(folder), name, theirs["tokens"][name]) for name in SHAPES}
    from spectral_theorem.provenance import environment

    record = {
        "environment": environment() | {"date": time.strftime("%Y-%m-%d"), "theirs": theirs["versions"]},
        "dtype": "float32",
        "cases": cases,
        "largest_logits_difference": max(case["logits_difference"] for case in cases.values()),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "docs/benchmarks/parity_openai.json"))
