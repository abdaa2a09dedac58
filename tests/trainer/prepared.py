# SPDX-License-Identifier: Apache-2.0
"""A prepared set of noise, with a trace in every forged clip that a model can learn."""

from __future__ import annotations

import json
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
    splits: dict[str, str],
    clips: int = 2,
    tokens: int = 60,
    crop_px: int = 64,
    seed: int = 0,
) -> Path:
    """``splits``: identity -> split.  Forged pictures are darker, forged voices tilted."""
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
                target = folder / array
                target.parent.mkdir(parents=True, exist_ok=True)
                np.savez(
                    target,
                    crops=crops.astype(np.uint8),
                    tokens=audio,
                    level_dbfs=np.full(tokens, -20, np.float32),
                )
                rows.append(
                    {
                        "file": file,
                        "array": array,
                        "tokens": tokens,
                        "identity": identity,
                        "clip": f"c{number}",
                        "split": split,
                        "category": category,
                        "method": method,
                        "fake_video": fake_v,
                        "fake_audio": fake_a,
                        "synthetic_voice": synthetic,
                        "matched": matched,
                    }
                )
    index = {"crop_px": crop_px, "splits": splits, "dropped": {}, "clips": rows}
    (folder / "index.json").write_text(json.dumps(index))
    return folder
