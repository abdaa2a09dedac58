# SPDX-License-Identifier: Apache-2.0
"""A prepared set of noise, with a trace in every forged clip that a model can learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CATEGORIES = {
    "RealVideo-RealAudio": ("real", False, False, False, True),
    "RealVideo-FakeAudio": ("none+vocoded", False, True, True, True),
    "FakeVideo-RealAudio": ("self_blend+none", True, False, False, True),
    "FakeVideo-FakeAudio": ("mouth_replay+replaced", True, True, False, False),
}


def write_noise_set(
    folder: Path,
    *,
    splits: Mapping[str, str | None],
    clips: int = 2,
    tokens: int = 60,
    crop_px: int = 64,
    silence_tokens: int = 0,
    seed: int = 0,
) -> Path:
    """``splits``: identity -> split (None: not dealt).  Forged pictures are darker, forged voices
    tilted; every clip starts with ``silence_tokens`` of silence."""
    rng = np.random.default_rng(seed)
    rows = []
    for identity, split in splits.items():
        for category, (method, fake_v, fake_a, synthetic, matched) in CATEGORIES.items():
            for number in range(clips):
                suffix = (
                    "" if category == "RealVideo-RealAudio" else f"_{method.replace('+', '-')}_0"
                )
                file = f"{category}/Unknown/unknown/{identity}/c{number}{suffix}.mp4"
                array = f"arrays/{Path(file).with_suffix('.npz')}"
                crops = rng.integers(80, 255, (tokens, crop_px, crop_px, 3))
                audio = rng.standard_normal((tokens, 104)).astype(np.float32)
                if fake_v:
                    crops -= 70
                if synthetic:
                    audio += np.linspace(-1, 1, 104, dtype=np.float32)
                sound = rng.integers(-3000, 3000, tokens * 640).astype(np.int16)
                sound[: silence_tokens * 640] = 0
                audio[:silence_tokens] = 0
                target = folder / array
                target.parent.mkdir(parents=True, exist_ok=True)
                np.savez(
                    target,
                    crops=crops.astype(np.uint8),
                    tokens=audio,
                    level_dbfs=np.full(tokens, -20, np.float32),
                    audio=sound,
                )
                rows.append(
                    {
                        "file": file,
                        "array": array,
                        "tokens": tokens,
                        "silence_tokens": silence_tokens,
                        "identity": identity,
                        "voice_identity": identity,
                        "swapped_identity": None,
                        "clip": f"c{number}",
                        "split": split,
                        "category": category,
                        "method": method,
                        "fake_video": fake_v,
                        "fake_audio": fake_a,
                        "synthetic_voice": synthetic,
                        "matched": matched,
                        "groups": {},
                        "file_bytes": target.stat().st_size,
                        "video_bit_rate": 400_000,
                        "audio_bit_rate": 64_000,
                        "fps": 25.0,
                        "width": 360,
                        "height": 288,
                        "duration_s": tokens / 25,
                    }
                )
    index = {
        "version": 3,
        "crop_px": crop_px,
        "layout": "forged",
        "dropped": {},
        "clips": sorted(rows, key=lambda r: str(r["file"])),
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder
