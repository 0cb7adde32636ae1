"""Find the small Whisper and the ten clips that the package carries; README.md says where they are from."""

from pathlib import Path

NAME = "carried"
MODEL = Path(__file__).parent / "model"
CLIPS = Path(__file__).parent / "clips"
