# SPDX-License-Identifier: Apache-2.0
"""A folder in the exact shape of FakeAVCeleb v1.2, out of drawn talking heads or forged clips.

The heads are plain drawings that dlib's detector takes for faces; colours and pitch are the
person's, and the mouth follows the loudness of the voice.  The CSV has what the real one has: ten
columns of which the last has no name, a row that names a file again with another method, and a row
whose file is missing.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.runtime.clips import write_clip

Array = np.ndarray[Any, Any]

HEADER = (
    "source",
    "target1",
    "target2",
    "method",
    "category",
    "type",
    "race",
    "gender",
    "path",
    "",
)
LETTERS = {
    "RealVideo-RealAudio": "A",
    "RealVideo-FakeAudio": "B",
    "FakeVideo-RealAudio": "C",
    "FakeVideo-FakeAudio": "D",
}
RACES = ("African", "Asian (East)", "Asian (South)", "Caucasian (American)", "Caucasian (European)")
GENDERS = ("men", "women")
SIZE = (240, 180)  # width, height
# forge's methods -> FakeAVCeleb's, by category
METHOD_OF = {
    "RealVideo-RealAudio": "real",
    "RealVideo-FakeAudio": "rtvc",
    "FakeVideo-RealAudio": "faceswap",
    "FakeVideo-FakeAudio": "faceswap-wav2lip",
}


@dataclass
class Built:
    """What was written, for a test to compare with."""

    root: Path
    files: list[str] = field(default_factory=list)  # on disk, relative to root
    rows: list[list[str]] = field(default_factory=list)  # of the CSV
    missing: str = ""  # named by the CSV, not on disk


@cache
def draw_face(person: int, opening: int, face_of: int | None = None) -> Array:
    """A head [H, W, 3] whose mouth is open by 0 to 4; ``face_of`` puts another one's face in."""
    scale = 4
    width, height = SIZE[0] * scale, SIZE[1] * scale
    rng = np.random.default_rng(person)
    hair = tuple(int(v) for v in rng.integers(20, 80, 3))
    wall = tuple(int(v) for v in rng.integers(140, 190, 3))
    inner = np.random.default_rng(person if face_of is None else face_of)
    skin = np.array([205, 165, 140]) + inner.integers(-20, 20)
    picture = np.full((height, width, 3), wall, np.uint8)
    radius = height * 0.30

    def oval(x: float, y: float, a: float, b: float, colour: Any, line: int = -1) -> None:
        centre = (int(width / 2 + x * radius), int(height / 2 + y * radius))
        angles = (0, 360) if line < 0 else (180, 360)
        axes = (int(a * radius), int(b * radius))
        cv2.ellipse(picture, centre, axes, 0, *angles, tuple(int(c) for c in colour), line)

    oval(0, -0.15, 1.0, 1.25, hair)
    oval(0, 0.05, 0.82, 1.12, skin)
    for side in (-0.36, 0.36):
        oval(side, -0.12, 0.22, 0.13, skin - 40)
        oval(side, -0.10, 0.15, 0.075, (235, 235, 235))
        oval(side, -0.10, 0.07, 0.075, (30, 25, 20))
        oval(side, -0.30, 0.22, 0.07, hair, line=int(0.09 * radius))
    oval(0, 0.18, 0.10, 0.20, skin - 15)
    for side in (-0.08, 0.08):
        oval(side, 0.33, 0.06, 0.04, skin - 85)
    oval(0, 0.62, 0.28, 0.05 + 0.025 * opening, (120, 50, 50))
    oval(0, 0.50, 0.28, 0.03, (150, 80, 75))
    oval(0, 0.95, 0.3, 0.08, skin - 25)
    soft = cv2.GaussianBlur(picture, (0, 0), scale * 1.2)
    return np.asarray(cv2.resize(soft, SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def loudness(sentence: int, seconds: float) -> Array:
    """Syllables: values 0 to 1, one a token."""
    rng = np.random.default_rng([7, sentence])
    knots = rng.uniform(0, 1, int(seconds * 6) + 2)
    return np.interp(np.arange(round(seconds * 25)) / 25 * 6, np.arange(len(knots)), knots)


def speak(person: int, sentence: int, seconds: float, *, synthetic: bool = False) -> Array:
    """Harmonics of the person's pitch under the syllables; a machine's voice has no noise."""
    samples = np.arange(round(seconds * 16_000))
    pitch_hz = 110 + 12 * (person % 12)
    voice = sum(np.sin(2 * np.pi * pitch_hz * k * samples / 16_000) / k for k in range(1, 12))
    level = np.interp(samples / 640, np.arange(round(seconds * 25)), loudness(sentence, seconds))
    noise = np.random.default_rng([person, sentence]).normal(0, 0.004, len(samples))
    return (0.12 * voice * level + (0 if synthetic else noise)).astype(np.float32)


def write_talking(
    path: Path,
    person: int,
    sentence: int,
    *,
    seconds: float = 2.4,
    fps: float = 25.0,
    voice_of: int | None = None,
    says: int | None = None,
    lips: int | None = None,
    face_of: int | None = None,
    synthetic: bool = False,
    silence_s: float = 0.0,
) -> Path:
    """A clip of a person whose lips say ``lips`` and whose sound is sentence ``says``."""
    spoken = sentence if says is None else says
    sound = speak(person if voice_of is None else voice_of, spoken, seconds, synthetic=synthetic)
    sound[: round(silence_s * 16_000)] = 0
    mouth = np.rint(4 * loudness(sentence if lips is None else lips, seconds)).astype(int)

    def picture(index: int, size: tuple[int, int]) -> Array:
        return draw_face(person, int(mouth[min(int(index / fps * 25), len(mouth) - 1)]), face_of)

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, seconds=seconds, fps=fps, size=SIZE, sound=sound, picture=picture)


def identity(person: int) -> str:
    return f"id{76 + 31 * person:05d}"


def group(person: int) -> tuple[str, str]:
    """(race, gender): the first ten people are one of each."""
    return RACES[person % 5], GENDERS[person // 5 % 2]


def write_fakeavceleb(
    root: Path, *, people: int = 6, seconds: float = 2.4, table: bool = True
) -> Built:
    """Seven clips a person of drawn heads: one genuine, one rtvc, two RAFV, three FAFV.

    Every other fake lends from the person itself, as in FakeAVCeleb, or from the next one.
    """
    built = Built(root)
    for person in range(people):
        other = (person + 1) % people
        third = (person + 2) % people
        own, next_id, third_id = identity(person), identity(other), identity(third)
        video = f"{100 + person:05d}"
        said = 10 * person
        fast = 29.97 if person == 1 else 25.0
        a, b, c, d = LETTERS
        plan: list[tuple[str, str, str, str, str, dict[str, Any]]] = [
            (a, f"{video}.mp4", "real", "-", "-", {"fps": fast}),
            (b, f"{video}_fake.mp4", "rtvc", "-", "-", {"says": said + 1, "synthetic": True}),
            (c, f"{video}_{own}_wavtolip.mp4", "wav2lip", own, "-", {}),
            (c, f"{video}_{next_id}_eQTviHjyISo.mp4", "faceswap", next_id, "-", {"face_of": other}),
            (d, f"{video}_{own}_wavtolip.mp4", "wav2lip", own, "-", {"synthetic": True}),
            (
                d,
                f"{video}_{next_id}_3BZvvzBhj8s_{third_id}_wavtolip.mp4",
                "faceswap-wav2lip",
                next_id,
                third_id,
                {"face_of": other, "voice_of": third, "synthetic": True},
            ),
            (
                d,
                f"{video}_0_{own}_wavtolip.mp4",
                "fsgan-wav2lip",
                "0",
                own,
                {"face_of": other, "synthetic": True, "silence_s": 0.1},
            ),
        ]
        for category, name, method, target1, target2, how in plan:
            row = _row(own, target1, target2, method, category, group(person), name)
            file = _file(row)
            if "wav2lip" in method:
                how = {"says": said + 2, "lips": said + 2, **how}
            write_talking(root / file, person, said, seconds=seconds, **how)
            built.files.append(file)
            built.rows.append(row)
    _finish(built, table)
    return built


def from_forged(forged: Path, root: Path, *, table: bool = True) -> Built:
    """A set of :mod:`trainer.forge` in FakeAVCeleb's names, folders and columns."""
    records = json.loads((forged / "forge.json").read_text())["clips"]
    people = {name: i for i, name in enumerate(sorted({r["identity"] for r in records}))}
    built = Built(root)
    names: dict[str, int] = {}
    taken: dict[tuple[str, str], int] = {}
    for record in records:
        number = people[record["identity"]]
        donor = people.get(record.get("donor"), number)
        clip = names.setdefault(f"{record['identity']}/{record['clip']}", len(names))
        method, category = METHOD_OF[record["category"]], record["category"]
        targets = ["-", "-"] if method in ("real", "rtvc") else [identity(donor), "-"]
        if method == "faceswap-wav2lip":
            targets[1] = identity(donor)
        extra = ["fake"] if method == "rtvc" else [t for t in targets if t != "-"]
        stem = "_".join([f"{clip:05d}", *extra])
        again = taken[category, stem] = taken.get((category, stem), -1) + 1
        name = f"{stem}_{again}.mp4" if again else f"{stem}.mp4"
        row = _row(identity(number), *targets, method, category, group(number), name)
        (root / _file(row)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(forged / record["file"], root / _file(row))
        built.files.append(_file(row))
        built.rows.append(row)
    _finish(built, table)
    return built


def _row(
    source: str,
    target1: str,
    target2: str,
    method: str,
    category: str,
    race_gender: tuple[str, str],
    name: str,
) -> list[str]:
    race, gender = race_gender
    folder = f"FakeAVCeleb/{category}/{race}/{gender}/{source}"
    labels = [LETTERS[category], category, race, gender]
    return [source, target1, target2, method, *labels, name, folder]


def _file(row: list[str]) -> str:
    return f"{row[9].removeprefix('FakeAVCeleb/')}/{row[8]}"


def _finish(built: Built, table: bool) -> None:
    """The CSV with its flaws, and a text file that is no clip."""
    (built.root / "README.txt").write_text("FakeAVCeleb v1.2\n")
    if not table:
        return
    last = built.rows[-1]
    lost = [*last[:8], "99999_lost.mp4", last[9]]
    built.missing = _file(lost)
    plain = next(r for r in built.rows if r[5] == "FakeVideo-FakeAudio")
    twice = [*plain[:3], "faceswap-wav2lip" if plain[3] == "wav2lip" else "wav2lip", *plain[4:]]
    built.rows = [built.rows[0], twice, *built.rows, lost]
    with (built.root / "meta_data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(built.rows)
