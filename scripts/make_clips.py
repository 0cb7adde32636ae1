"""Speak digits by machine, and make sounds that are no speech: what the carried model is shown and trained with.

Usage:
    python scripts/make_clips.py voices FOLDER    single digits of many voices, to train with
    python scripts/make_clips.py carried FOLDER   the ten clips that the package carries

Needs espeak-ng (Debian: apt-get install espeak-ng). Both folders get a manifest.csv. The carried clips are spoken
by voices of the training set, at a pitch and a speed that it does not contain.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from spectral_theorem.audio import SAMPLE_RATE, load_audio
from spectral_theorem.scoring import DIGITS

VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us+m3", "en-us+m7", "en-us+f2", "en-us+f4", "en-gb+f3")
PITCHES, SPEEDS = (30, 50, 70), (120, 150, 180)
FIRST_TAKE = 5  # takes 0 to 4 are held out of training elsewhere
CARRIED = (
    ("en-us", "three one four"),
    ("en-gb", "two seven"),
    ("en-us+f2", "nine zero five"),
    ("en-gb-scotland", "eight"),
    ("en-us+f4", "one six two"),
    ("en-us+m3", "four four"),
)
CARRIED_PITCH, CARRIED_SPEED = 42, 140
LICENCE = "CC0-1.0"


def spoken(text: str, *, voice: str, pitch: int, speed: int, gap: int = 0) -> np.ndarray:
    """Return a text as samples at 16 kHz without the silence around it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spoken.wav"
        command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "-g", str(gap), "-w", str(file), text]
        subprocess.run(command, check=True, capture_output=True)
        samples, _ = load_audio(file)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def write(folder: Path, clips: dict[str, tuple[np.ndarray, str, str]]) -> None:
    """Write clips, name -> (samples, transcript, speaker), with their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "transcript", "speaker", "licence"])
        for name, (samples, transcript, speaker) in clips.items():
            soundfile.write(folder / name, samples, SAMPLE_RATE, subtype="PCM_16")
            rows.writerow([name, transcript, speaker, LICENCE])
    print(f"{len(clips)} clips in {folder}")


def voices(folder: Path) -> None:
    """Write every digit in every voice, pitch and speed."""
    clips = {}
    for voice in VOICES:
        combinations = [(pitch, speed) for pitch in PITCHES for speed in SPEEDS]
        for take, (pitch, speed) in enumerate(combinations, start=FIRST_TAKE):
            for digit, word in enumerate(DIGITS):
                samples = spoken(word, voice=voice, pitch=pitch, speed=speed)
                clips[f"{digit}_{voice.replace('+', '-')}_{take}.wav"] = (samples, word, f"espeak {voice}")
    write(folder, clips)


def carried(folder: Path) -> None:
    """Write six strings of digits and four sounds without speech, three seconds at most."""
    clips = {}
    for voice, text in CARRIED:
        words = [spoken(word, voice=voice, pitch=CARRIED_PITCH, speed=CARRIED_SPEED) for word in text.split()]
        silence = np.zeros(round(0.12 * SAMPLE_RATE))
        samples = np.concatenate([piece for word in words for piece in (silence, word)] + [silence])
        assert samples.size <= 3 * SAMPLE_RATE, (text, samples.size / SAMPLE_RATE)
        clips[f"{text.replace(' ', '-')}.flac"] = (0.5 * samples / np.abs(samples).max(), text, f"espeak {voice}")
    rng = np.random.default_rng(0)
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * f * time) for f in (220.0, 277.2, 329.6)) * np.exp(-1.5 * time)
    knocks = np.zeros(time.size)
    for at in (0.2, 0.7, 1.1, 1.6):
        start, length = round(at * SAMPLE_RATE), 1600
        knocks[start : start + length] = rng.normal(size=length) * np.exp(-np.arange(length) / 150)
    hum = np.sin(2 * np.pi * 100 * time) + 0.3 * np.sin(2 * np.pi * 300 * time)
    hiss = np.cumsum(rng.normal(size=time.size))
    hiss -= np.convolve(hiss, np.ones(400) / 400, mode="same")
    for name, sound in (("chord", chord), ("knocks", knocks), ("hum", hum), ("hiss", hiss)):
        clips[f"{name}.flac"] = (0.3 * sound / np.abs(sound).max(), "", "")
    write(folder, clips)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("voices", "carried") or not shutil.which("espeak-ng"):
        sys.exit("usage: python scripts/make_clips.py voices|carried FOLDER, with espeak-ng installed")
    {"voices": voices, "carried": carried}[sys.argv[1]](Path(sys.argv[2]))
