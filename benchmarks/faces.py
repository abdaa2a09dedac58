# SPDX-License-Identifier: Apache-2.0
"""Which faces are found, how large, and at what cost: ``python -m benchmarks.faces``.

    python -m benchmarks.faces [--photos DIR] [--clips DIR] [--teacher DIR] [--output J.json]

A face of a photograph, or of one picture of a clip, is cut out with what is around it, brought to a
width of 20 ... 400 pixels, and laid with soft edges into a picture of 640x480, at a random place
where all of its box is inside.  What lies behind is in turn a plain shade, noise, stripes, a page
of text, and scenery: what is beside the face in other pictures.  One picture holds one face.

The width of a face, its box, and how far it is turned are FaceMesh's where ``--teacher`` is a
folder that ``trainer.distil`` wrote (its ``answers/``); without it they are the detector's own at
full size, which then cannot miss what it measures by: the JSON says which.  Faces that would have
to be enlarged by more than a quarter are left out of that size, but of the largest.

Found means: the middle of what was found lies in the face's box, and it is between half and twice
as wide.  (Boxes of detectors differ in what belongs to a face: overlap would punish that.)
Everything else that is found is a false find.  False finds are counted besides in pictures without
a face: textures, pages of text, and scenery and bodies cut from beside and below the faces.

Time is the thread's own CPU time, so that a busy machine does not count; beside it the wall's.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.environment import describe
from export.face_detector import DEFAULT_MODEL
from runtime.command import Parser, guarded, positive_int
from runtime.errors import MediaError, UsageError
from runtime.faces.align import turn_deg
from runtime.faces.detector import LOOKS, MODEL_FILE, Detection, Detector, tiles
from runtime.faces.identity import Box
from runtime.faces.tracker import FINE_SEARCH, FaceTracker
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.naming import plain_line
from runtime.overwrites import refuse_overwrites
from runtime.spec import FACE_POINTS, FaceSpec
from trainer.face.mesh import face_points
from trainer.face.sources import Item, list_items, pictures
from trainer.face.teacher import answers_path, load_answers

UInt8 = npt.NDArray[np.uint8]
Rng = np.random.Generator
Finder = Callable[[UInt8], list[tuple[Box, float]]]  # boxes and scores

WIDTH, HEIGHT = 640, 480
SIZES_PX = (20, 24, 32, 40, 60, 100, 200, 400)
GOALS = {32: 0.95, 40: 0.98, 60: 0.99}  # share found
TURNED_DEG = 20.0  # from here a face counts as turned
MARGIN = 0.8  # of the face's width, around it, as far as there is a picture
SOFT_EDGE = 0.12  # of the face's width
MAX_ENLARGED = 1.25  # of faces up to the last size but one; a near face may be as soft as it is
DETAILS = (128, 320, 384, 448)
SCORES = (0.5, 0.6, 0.7)  # from which a box counts; dlib's have a scale of their own
SHIPPED = DEFAULT_MODEL
DLIB_EVERY = 5  # it sees one picture in so many: it takes longer than all others together
SIGNATURE = 0x0FACE  # of the random numbers


@dataclass(frozen=True)
class Sample:
    """A face and what is around it."""

    picture: UInt8  # [H, W, 3]
    box: Box  # in it
    turned: bool

    @property
    def width_px(self) -> float:
        return self.box[2] - self.box[0]


# --- faces ----------------------------------------------------------------------------------


def samples(items: Sequence[Item], teacher: Path | None, count: int, rng: Rng,
            detector: Detector) -> Iterator[Sample]:  # fmt: skip
    """One face an item, until there are ``count``; items in random order."""
    for number in rng.permutation(len(items)):
        if count == 0:
            return
        check()
        item = items[int(number)]
        try:
            found = _taught(item, teacher, rng) if teacher else _seen(item, detector)
        except (MediaError, UsageError) as err:
            print(f"left out: {plain_line(str(err))}", file=sys.stderr)
            continue
        if found is not None:
            count -= 1
            yield found


def _taught(item: Item, teacher: Path | None, rng: Rng) -> Sample | None:
    assert teacher is not None
    answers = load_answers(answers_path(teacher, item))
    if answers is None or not answers.found.any():
        return None
    at = int(rng.choice(np.flatnonzero(answers.found)))
    picture = next(itertools.islice(pictures(item), at, None), None)
    if picture is None or picture.shape[:2] != answers.size:
        return None
    mesh = answers.landmarks[at]
    low, high = mesh[:, :2].min(0), mesh[:, :2].max(0)
    triangle = face_points(mesh)[[FACE_POINTS.index(n) for n in ("left_eye", "right_eye", "nose")]]
    return _inside(picture, (*low.tolist(), *high.tolist()), turn_deg(triangle))


def _seen(item: Item, detector: Detector) -> Sample | None:
    picture = next(iter(pictures(item)), None)
    if picture is None:
        return None
    faces = detector.find(picture)
    if len(faces) != 1:
        return None
    points = faces[0].points
    # the tip of the nose stands further out than its base: this is coarse, and good for two groups
    return _inside(picture, faces[0].box, turn_deg(points[:3]))


def _inside(picture: UInt8, box: Box, turn: float) -> Sample | None:
    """None: the picture cuts off a part of the face."""
    height, width = picture.shape[:2]
    slack = 0.03 * (box[2] - box[0])
    if box[0] < -slack or box[1] < -slack or box[2] > width + slack or box[3] > height + slack:
        return None
    return Sample(picture, box, turn >= TURNED_DEG)


# --- pictures -------------------------------------------------------------------------------


def paste(sample: Sample, width_px: float, ground: UInt8, rng: Rng) -> tuple[UInt8, Box]:
    """``ground`` with the face in it, ``width_px`` wide, and where it is."""
    around = MARGIN * sample.width_px
    x0, y0 = max(0, int(sample.box[0] - around)), max(0, int(sample.box[1] - around))
    part = sample.picture[y0 : int(sample.box[3] + around), x0 : int(sample.box[2] + around)]
    scale = width_px / sample.width_px
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    part = np.asarray(cv2.resize(part, size, interpolation=mode), np.uint8)
    box = np.reshape(sample.box, (2, 2)) - [x0, y0]
    box = box * scale
    # the box lies inside the picture; what is around it may hang over
    room = np.maximum([WIDTH, HEIGHT] - np.ceil(box[1] - box[0]), 1)
    origin = np.floor(rng.uniform(0, room) - box[0]).astype(int)
    return _blend(ground, part, origin, SOFT_EDGE * width_px), (
        *(box[0] + origin).tolist(), *(box[1] + origin).tolist()
    )  # fmt: skip


def _blend(ground: UInt8, part: UInt8, origin: npt.NDArray[Any], soft_px: float) -> UInt8:
    height, width = part.shape[:2]
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width))
    weight = np.clip((np.minimum.outer(rows, columns) + 1) / max(soft_px, 1), 0, 1)[..., None]
    left, top = int(origin[0]), int(origin[1])
    x0, y0, x1, y1 = max(0, left), max(0, top), min(WIDTH, left + width), min(HEIGHT, top + height)
    piece = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    out = ground.copy()
    behind = ground[y0:y1, x0:x1]
    out[y0:y1, x0:x1] = np.round(weight[piece] * part[piece] + (1 - weight[piece]) * behind)
    return out


def plain(rng: Rng) -> UInt8:
    """A shade that goes from one colour to another."""
    a, b = rng.integers(20, 236, (2, 3))
    ramp = np.linspace(0, 1, WIDTH)[None, :, None]
    return np.broadcast_to(a * (1 - ramp) + b * ramp, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def noise(rng: Rng) -> UInt8:
    """Clouds: noise of several sizes, one over the other."""
    total = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for octave in range(2, 8):
        grid = rng.normal(0, 1, (HEIGHT >> octave, WIDTH >> octave, 3)).astype(np.float32)
        total += cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) * octave
    return np.clip(128 + total * 8, 0, 255).astype(np.uint8)


def stripes(rng: Rng) -> UInt8:
    """Two sets of stripes that cross: shelves, blinds, checks."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    out = np.full((HEIGHT, WIDTH, 3), 128.0)
    for _ in range(2):
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 60)
        wave = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / period)
        out += np.sign(wave)[..., None] * rng.uniform(-60, 60, 3)
    return np.clip(out, 0, 255).astype(np.uint8)


def text(rng: Rng) -> UInt8:
    """A page of letters and signs, round ones among them."""
    dark, light = sorted(rng.integers(0, 256, 2).tolist())
    page = np.full((HEIGHT, WIDTH, 3), light, np.uint8)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789   .,:;()%&?@")
    size = rng.uniform(0.4, 2.0)
    step = int(28 * size)
    for y in range(step, HEIGHT + step, step):
        line = "".join(rng.choice(letters, 60))
        cv2.putText(page, line, (4, y), cv2.FONT_HERSHEY_SIMPLEX, size, (dark,) * 3,
                    int(rng.integers(1, 4)), cv2.LINE_AA)  # fmt: skip
    return page


def scenery(sample: Sample, rng: Rng) -> UInt8 | None:
    """What lies to the left or right of a face, or below it (body, hands), as a picture."""
    x0, _, x1, y1 = sample.box
    gap = 0.5 * (x1 - x0)  # hair, ears, the neck
    height, width = sample.picture.shape[:2]
    strips = [
        sample.picture[:, : max(0, int(x0 - gap))],
        sample.picture[:, min(width, int(x1 + gap)) :],
        sample.picture[min(height, int(y1 + gap / 2)) :],
    ]
    usable = [s for s in strips if min(s.shape[:2]) >= 48]
    if not usable:
        return None
    part = usable[int(rng.integers(len(usable)))]
    wanted = WIDTH / HEIGHT  # the largest piece of the picture's proportions
    h, w = part.shape[:2]
    size = (h, min(w, int(h * wanted))) if w / h > wanted else (min(h, int(w / wanted)), w)
    top, left = (int(rng.integers(n - s + 1)) for n, s in zip((h, w), size, strict=True))
    part = part[top : top + size[0], left : left + size[1]]
    out = cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.asarray(out, np.uint8)


MADE: dict[str, Callable[[Rng], UInt8]] = {
    "plain": plain, "noise": noise, "stripes": stripes, "text": text,
}  # fmt: skip


# --- detectors ------------------------------------------------------------------------------


def finders(detectors: dict[str, Detector], details: Sequence[int]) -> dict[str, Finder]:
    """Every way to look, by name; the first detector is the one that ships."""
    tracker = FaceTracker(FaceSpec())
    base = tracker.spec.detect_width_px / WIDTH

    def dlib_at(scale: float) -> Finder:
        return lambda frame: tracker._detect(_grey(frame), scale, (0, 0))

    def whole(detector: Detector, detail: int | None) -> Finder:
        return lambda frame: _pairs(detector.find(frame, detail=detail))

    own = next(iter(detectors.values()))
    return {
        "dlib": dlib_at(base),
        "dlib, twice as large": dlib_at(base * FINE_SEARCH),
        **{f"{name} {detail}": whole(detector, detail)
           for name, detector in detectors.items() for detail in details},
        f"{SHIPPED} {LOOKS[0]} and {LOOKS[1]}": whole(own, None),
        f"{SHIPPED} {TILE_DETAIL}, 2x2 tiles":
            lambda frame: _pairs(own.find_all(frame, TILES, detail=TILE_DETAIL)),
    }  # fmt: skip


def _pairs(found: Sequence[Detection]) -> list[tuple[Box, float]]:
    return [(d.box, d.score) for d in found]


TILES, TILE_DETAIL = tiles(HEIGHT, WIDTH, 2, 2, 0.15), 208  # as much detail as 384 of the whole


def _grey(frame: UInt8) -> UInt8:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def hits(found: Sequence[Box], truth: Box) -> tuple[bool, int]:
    """Is the face among what was found, and how much of that is something else?"""
    width = truth[2] - truth[0]
    fits = [
        truth[0] <= (b[0] + b[2]) / 2 <= truth[2]
        and truth[1] <= (b[1] + b[3]) / 2 <= truth[3]
        and width / 2 <= b[2] - b[0] <= width * 2
        for b in found
    ]
    return any(fits), fits.count(False)


# --- measuring ------------------------------------------------------------------------------


class Clock:
    """Milliseconds a call: the thread's own time, and the wall's; the medians of all."""

    def __init__(self) -> None:
        self._cpu: list[float] = []
        self._wall: list[float] = []

    def timed(self, call: Finder, frame: UInt8) -> list[tuple[Box, float]]:
        cpu, wall = time.thread_time(), time.perf_counter()
        found = call(frame)
        self._cpu.append(time.thread_time() - cpu)
        self._wall.append(time.perf_counter() - wall)
        return found

    def to_json(self) -> dict[str, float]:
        return {
            "cpu_ms": round(float(np.median(self._cpu)) * 1e3, 2),
            "wall_ms": round(float(np.median(self._wall)) * 1e3, 2),
        }


def measure(
    faces: Sequence[Sample], looks: dict[str, Finder], rng: Rng, *, sizes: Sequence[int],
    empty: int,
) -> dict[str, Any]:  # fmt: skip
    """Counts of every way to look, at every score; JSON-ready.  All see the same pictures."""
    clocks = {name: Clock() for name in looks}
    rows: dict[str, Any] = {}

    def count(frame: UInt8, truth: Box | None, number: int, place: Sequence[str]) -> None:
        check()
        for name, look in looks.items():
            if name.startswith("dlib") and number % DLIB_EVERY:
                continue
            found = clocks[name].timed(look, frame)
            for score in (None,) if name.startswith("dlib") else SCORES:
                row = rows.setdefault(name if score is None else f"{name} from {score}", {})
                boxes = [b for b, s in found if score is None or s >= score]
                there, others = hits(boxes, truth) if truth else (False, len(boxes))
                for key in place:
                    counts = row.setdefault(key, {"pictures": 0, "found": 0, "others": 0})
                    counts["pictures"] += 1
                    counts["found"] += int(there)
                    counts["others"] += others

    for size in sizes:
        largest = MAX_ENLARGED if size < sizes[-1] else np.inf
        fit = [f for f in faces if size <= f.width_px * largest]
        for number, face in enumerate(fit):
            frame, truth = paste(face, size, _ground(number, faces, face, rng), rng)
            group = "turned" if face.turned else "frontal"
            count(frame, truth, number, (str(size), f"{size} {group}"))
    for number, (kind, frame) in enumerate(_without(faces, rng, empty)):
        count(frame, None, number, ("empty", f"empty {kind}"))
    return {
        name: {**clocks[name.partition(" from ")[0]].to_json(), "counts": row}
        for name, row in rows.items()
    }


def _ground(number: int, faces: Sequence[Sample], face: Sample, rng: Rng) -> UInt8:
    kinds = [*MADE, "scenery"]
    kind = kinds[number % len(kinds)]
    if kind == "scenery":
        for other in rng.permutation(len(faces))[:20]:
            if faces[other] is not face and (found := scenery(faces[other], rng)) is not None:
                return found
        kind = "noise"
    return MADE[kind](rng)


def _without(faces: Sequence[Sample], rng: Rng, count: int) -> Iterator[tuple[str, UInt8]]:
    """``count`` pictures without a face, half of them made, half cut from beside faces."""
    for number in range(count // 2):
        kind = list(MADE)[number % len(MADE)]
        yield kind, MADE[kind](rng)
    left = count - count // 2
    for _ in range(10 * count):
        found = scenery(faces[int(rng.integers(len(faces)))], rng) if left else None
        if found is not None:
            left -= 1
            yield "scenery", found


# --- the command ----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    p = Parser(prog="python -m benchmarks.faces",
               description="Which faces are found, how large, and at what cost.")  # fmt: skip
    p.add_argument("--photos", type=Path, metavar="DIR", help="photographs of one face each")
    p.add_argument("--clips", type=Path, metavar="DIR", help="clips of one face each")
    p.add_argument("--teacher", type=Path, metavar="DIR",
                   help="what trainer.distil wrote: boxes and turns are FaceMesh's; without it "
                        "they are the detector's own at full size")  # fmt: skip
    p.add_argument("--model", type=Path, action="append", default=[], metavar="FILE.onnx",
                   help="another detector of export.face_detector, beside the one that ships; may "
                        "be given several times")  # fmt: skip
    p.add_argument("--detail", type=positive_int, action="append", default=[], metavar="PX",
                   help=f"pixels for the longer side of a picture (default: "
                        f"{', '.join(map(str, DETAILS))})")  # fmt: skip
    p.add_argument("--faces", type=positive_int, default=200, metavar="N",
                   help="of each folder (default: 200)")  # fmt: skip
    p.add_argument("--empty", type=positive_int, default=1000, metavar="N",
                   help="pictures without a face (default: 1000)")  # fmt: skip
    p.add_argument("--output", type=Path, metavar="FILE.json")
    options = p.parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    folders = [(f, k) for f, k in ((options.photos, "photo"), (options.clips, "clip")) if f]
    if not folders:
        raise UsageError("faces are needed: give --photos DIR, --clips DIR, or both")
    listed = [list_items(folder, kind)[0] for folder, kind in folders]  # type: ignore[arg-type]
    refuse_overwrites(
        [options.output and ("--output", options.output)],
        [MODEL_FILE, *(item.path for items in listed for item in items)],
        options=vars(options),
    )
    cv2.setNumThreads(1)
    rng = np.random.default_rng(SIGNATURE)
    names = {SHIPPED: MODEL_FILE, **{f.stem: f for f in options.model}}
    detectors = {n: Detector(path, threads=1, min_score=SCORES[0]) for n, path in names.items()}
    own = next(iter(detectors.values()))
    found: list[Sample] = []
    for items in listed:
        found += samples(items, options.teacher, options.faces, rng, own)
    if not found:
        raise UsageError("no face in these folders that lies whole in its picture")
    looks = finders(detectors, options.detail or DETAILS)
    rows = measure(found, looks, rng, sizes=SIZES_PX, empty=options.empty)
    print("\n".join(table(rows)))
    if options.output is not None:
        write_json(
            options.output,
            {"benchmark": "faces", "schema_version": 1, **describe(),
             "boxes": "teacher" if options.teacher else "detector",
             "picture": [WIDTH, HEIGHT], "faces": len(found),
             "turned": sum(f.turned for f in found), "turned_deg": TURNED_DEG,
             "found_means": "its middle in the face's box, and 0.5 to 2 times its width",
             "goals": {str(k): v for k, v in GOALS.items()}, "detectors": rows},
        )  # fmt: skip
        print(f"written: {options.output}", file=sys.stderr)
    return 0


def table(rows: dict[str, Any]) -> list[str]:
    """Markdown: percent found of each size and of turned faces of 60 pixels, false finds in 1,000
    pictures without a face, CPU milliseconds."""
    sizes = [str(s) for s in SIZES_PX]
    head = ["", *(f"{s} px" for s in sizes), "60 px, turned", "false in 1,000", "CPU ms"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [_percent(row["counts"].get(key), "found") for key in [*sizes, "60 turned"]]
        cells += [_percent(row["counts"].get("empty"), "others", 1000), f"{row['cpu_ms']:.1f}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _percent(counts: dict[str, int] | None, what: str, of: int = 100) -> str:
    return "-" if counts is None else f"{of * counts[what] / counts['pictures']:.1f}"


if __name__ == "__main__":
    leave(main)
