"""Compare with the Flax Whisper of transformers 4.34.1, the ancestor of whisper-jax, and record the result.

Usage: python scripts/parity_flax.py PYTHON [docs/benchmarks/parity_flax.json]

PYTHON is the interpreter of a virtual environment of its own, with pins from 2023: jax==0.4.20 jaxlib==0.4.20
flax==0.7.5 optax==0.1.7 chex==0.1.85 orbax-checkpoint==0.4.4 numpy==1.26.4 scipy==1.11.4 ml-dtypes==0.2.0
transformers==4.34.1 tokenizers==0.14.1 huggingface-hub==0.17.3 cached-property requests absl-py. That side makes
random models, saves `flax_model.msgpack` by `save_pretrained` and computes logits; this side loads the folder,
computes logits from the same inputs, and compares.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    # mels, frames, width, vocabulary, positions, (layers, heads, hidden) of encoder and decoder
    "plain": (80, 30, 64, 97, 24, (2, 4, 256), (2, 4, 256)),
    "mels128": (128, 40, 48, 61, 32, (3, 2, 96), (1, 6, 80)),
    "half": (80, 30, 64, 97, 24, (2, 4, 256), (2, 4, 256)),
}
STORED = {"half": "float16"}
THEIRS = """
import json, sys
import numpy as np, jax, jax.numpy as jnp, flax, transformers
from transformers import FlaxWhisperForConditionalGeneration, WhisperConfig

folder, shapes, stored = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
jax.config.update("jax_default_matmul_precision", "highest")
for name, (mels, frames, width, vocabulary, positions, encoder, decoder) in shapes.items():
    end = vocabulary - 3
    config = WhisperConfig(
        num_mel_bins=mels, max_source_positions=frames, d_model=width, vocab_size=vocabulary,
        max_target_positions=positions, encoder_layers=encoder[0], encoder_attention_heads=encoder[1],
        encoder_ffn_dim=encoder[2], decoder_layers=decoder[0], decoder_attention_heads=decoder[1],
        decoder_ffn_dim=decoder[2], bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=end + 1, suppress_tokens=None, begin_suppress_tokens=None,
        forced_decoder_ids=[[1, end + 2]], dropout=0.0,
    )
    model = FlaxWhisperForConditionalGeneration(config, input_shape=(1, mels, 2 * frames), seed=0)
    draw = np.random.default_rng(0)
    def noise(path, leaf):
        last = path[-1].key
        scale = 1.5 / np.sqrt(np.prod(leaf.shape[:-1])) if last == "kernel" else 0.3
        return jnp.asarray(draw.standard_normal(leaf.shape) * scale + (last == "scale"), stored.get(name, "float32"))
    model.params = jax.tree_util.tree_map_with_path(noise, model.params)
    model.save_pretrained(f"{folder}/{name}")
    mel = draw.standard_normal((2, mels, 2 * frames)).astype(np.float32)
    tokens = draw.integers(0, vocabulary, (2, 9))
    wide = jax.tree_util.tree_map(lambda leaf: leaf.astype(jnp.float32), model.params)
    states = model.encode(mel, params=wide).last_hidden_state
    logits = model(mel, tokens, params=wide).logits
    np.savez(f"{folder}/{name}.npz", mel=mel, tokens=tokens, states=states, logits=logits)
print(json.dumps({"transformers": transformers.__version__, "jax": jax.__version__, "flax": flax.__version__}))
"""


def compare(folder: Path, name: str) -> dict[str, Any]:
    """Load one of their folders and return how far apart the two sides are."""
    import jax.numpy as jnp
    import numpy as np

    from spectral_theorem import whisper

    model = whisper.load(folder / name)
    with np.load(folder / f"{name}.npz") as file:
        theirs = dict(file)
    states = model.encode(jnp.asarray(theirs["mel"]))
    logits = model.logits(jnp.asarray(theirs["tokens"]), states)
    difference = lambda ours, other: float(np.abs(np.asarray(ours) - other).max())
    return {
        "dims": model.dims.to_config(),
        "stored": STORED.get(name, "float32"),
        "max_abs_states": float(np.abs(theirs["states"]).max()),
        "max_abs_logits": float(np.abs(theirs["logits"]).max()),
        "states_difference": difference(states, theirs["states"]),
        "logits_difference": difference(logits, theirs["logits"]),
    }


def main(interpreter: str, target: Path) -> None:
    """Run both sides and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [interpreter, "-c", THEIRS, folder, json.dumps(SHAPES), json.dumps(STORED)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr)
        versions = json.loads(run.stdout.splitlines()[-1])
        cases = {name: compare(Path(folder), name) for name in SHAPES}
    from spectral_theorem.provenance import environment

    record = {
        "environment": environment() | {"date": time.strftime("%Y-%m-%d"), "theirs": versions},
        "dtype": "float32",
        "cases": cases,
        "largest_logits_difference": max(case["logits_difference"] for case in cases.values()),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "docs/benchmarks/parity_flax.json"))
