# SPDX-License-Identifier: Apache-2.0
"""The teacher: MediaPipe's FaceMesh with attention to the lips, asked once, answers kept on disk.

``mediapipe`` below 0.10.22 carries its models in the wheel, but wants a Python of 3.9 to 3.12,
numpy below 2 and an OpenCV of its own.  So it lives in an environment beside the project's, made
here, and answers over pipes (:mod:`trainer.face.teacher_child`); pictures are decoded on this side,
by the runtime's own code.

Source: Grishchenko et al.: Attention Mesh, 2020 (arXiv 2006.10962); mediapipe is Apache-2.0.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import interrupt, waits
from runtime.closing import Closing
from runtime.errors import DependencyError, MediaError, UsageError
from runtime.files import cache_dir
from trainer.face import teacher_child
from trainer.face.sources import Item, pictures
from trainer.face.teacher_child import LANDMARKS, REQUEST

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

REQUIREMENT = "mediapipe<0.10.22"
PYTHONS = ("3.12", "3.11", "3.10", "3.9")  # that it has wheels for, the newest first
INSTALL_TIMEOUT_S = 1800
ANSWERS = "answers"
PHOTO_BORDER = 0.4  # of the sides, around a photograph in which no face was found at first
_STAMP_BYTES = 1 << 20
_ANSWER_BYTES = 5 + 4 * 3 * LANDMARKS


@dataclass(frozen=True)
class Answers:
    """What the teacher says of one item's T pictures; ``reason`` is set where it could say none."""

    landmarks: Float32  # [T, 478, 3] pixels of the picture; z to the camera is negative
    found: npt.NDArray[np.bool_]  # [T]
    score: Float32  # [T] of the detector; NaN where the mesh followed the face by itself
    size: tuple[int, int]  # height, width of the pictures
    reason: str = ""
    stamp: str = ""  # of the file that they are about


class TeacherDied(MediaError):
    """Its process ended over a picture."""


def environment_dir() -> Path:
    return cache_dir() / "teacher"


def ensure_environment(folder: Path) -> Path:
    """The Python of an environment with mediapipe, made where there is none.

    Raises :class:`DependencyError`, with the commands that make one, where that cannot be done,
    :class:`UsageError` for a folder that holds something else.
    """
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if python.is_file() and _runs(python, "import mediapipe"):
        return python
    base = find_python()
    by_hand = (
        f"python3.12 -m venv {folder} && {python} -m pip install '{REQUIREMENT}', "
        "or give the folder of one with --teacher-env"
    )
    if base is None:
        raise DependencyError(
            f"FaceMesh ({REQUIREMENT}) wants a Python of 3.9 to 3.12, and there is none here; "
            f"install one, then run this again or make the environment yourself: {by_hand}"
        )
    if folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
        raise UsageError(f"{folder} would be emptied, and is no environment; give another one")
    print(f"making the teacher's environment in {folder} ({REQUIREMENT}) ...", file=sys.stderr)
    for command in (
        [base, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--only-binary=:all:", REQUIREMENT],
    ):  # fmt: skip
        try:
            done = waits.run_program(
                command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise DependencyError(f"cannot make {folder} ({err}); by hand: {by_hand}") from None
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason"]
            raise DependencyError(
                f"cannot make the teacher's environment ({said[-1].strip()}); by hand: {by_hand}"
            )
    return python


def find_python() -> str | None:
    """A Python that mediapipe has wheels for: this one, or one on the path."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    names = [sys.executable] if here in PYTHONS else []
    names += [path for v in PYTHONS if (path := shutil.which(f"python{v}"))]
    names += [str(p) for v in PYTHONS for p in sorted(_pyenv().glob(f"{v}.*/bin/python"))]
    return next((name for name in names if _runs(name, "import ensurepip, venv")), None)


def _pyenv() -> Path:
    """Where pyenv keeps its Pythons; its commands on the path may be there and not work."""
    return Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def _runs(python: str | Path, code: str) -> bool:
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Teacher(Closing):
    """FaceMesh in its own process, which ends with this object."""

    def __init__(self, python: Path, log: Path | None = None) -> None:
        self._python, self._log = python, log
        self._process: subprocess.Popen[bytes] | None = None
        self.version = ""

    def __enter__(self) -> Teacher:
        self._start()
        return self

    def look(self, picture: UInt8, *, still: bool, new: bool) -> tuple[Float32 | None, float]:
        """RGB [H, W, 3] -> landmarks [478, 3] in pixels or None, and the detector's score.

        ``still``: the picture belongs to no film; ``new``: the face before is another film's.
        Raises :class:`TeacherDied`; the next look starts the process anew.
        """
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        height, width = picture.shape[:2]
        try:
            process.stdin.write(REQUEST.pack(height, width, still, new))
            process.stdin.write(np.ascontiguousarray(picture).data)
            process.stdin.flush()
            data = process.stdout.read(_ANSWER_BYTES)
        except (BrokenPipeError, OSError):
            data = b""
        if len(data) != _ANSWER_BYTES:
            self.close()
            raise TeacherDied("the teacher's process died over it")
        score = float(np.frombuffer(data, "<f4", 1, 1)[0])
        if not data[0]:
            return None, score
        points = np.frombuffer(data, "<f4", -1, 5).reshape(LANDMARKS, 3)
        return points * np.array([width, height, width], np.float32), score

    def _start(self) -> None:
        error: Any = self._log.open("ab") if self._log else subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                [str(self._python), "-I", str(Path(teacher_child.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error,
                start_new_session=True,  # Ctrl-C is for this process
            )
        except OSError as err:
            raise DependencyError(f"{self._python} cannot be started ({err.strerror})") from None
        finally:
            if self._log:
                error.close()
        assert self._process.stdout is not None
        self.version = self._process.stdout.readline().decode(errors="replace").strip()
        if not self.version.startswith("mediapipe "):
            self.close()
            raise DependencyError(
                f"mediapipe cannot be imported by {self._python}; delete that environment and run "
                "this again"
            )

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()  # it ends at the end of its input
        process.stdout.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(teacher: Teacher, item: Item) -> Answers:
    """All pictures of an item; never raises for what the item is."""
    points: list[Float32] = []
    scores: list[float] = []
    size = (0, 0)
    try:
        for picture in pictures(item):
            interrupt.check()
            found, score = None, float("nan")
            if picture is not None:
                size = picture.shape[:2]
                found, score = _look(teacher, picture, item, new=not points)
            points.append(found if found is not None else np.full((LANDMARKS, 3), np.nan, "f4"))
            scores.append(score)
    except (MediaError, UsageError) as err:
        return _nothing(str(err).removeprefix(f"{item.path}: ").removeprefix(f"{item.path.name}: "))
    except OSError as err:
        return _nothing(f"cannot be read ({err.strerror})")
    if not points:
        return _nothing("no picture in it")
    landmarks = np.stack(points)
    found_at = np.isfinite(landmarks[:, 0, 0])
    reason = "" if found_at.any() else "no face found"
    return Answers(landmarks, found_at, np.asarray(scores, np.float32), size, reason)


def _look(
    teacher: Teacher, picture: UInt8, item: Item, *, new: bool
) -> tuple[Float32 | None, float]:
    if item.kind == "clip":
        return teacher.look(picture, still=False, new=new)
    found, score = teacher.look(picture, still=True, new=True)
    if found is not None:
        return found, score
    import cv2  # a face that fills its photograph is larger than the detector looks for

    y, x = (round(PHOTO_BORDER * side) for side in picture.shape[:2])
    wider = cv2.copyMakeBorder(picture, y, y, x, x, cv2.BORDER_REPLICATE)
    found, score = teacher.look(np.asarray(wider, np.uint8), still=True, new=True)
    return (None if found is None else found - np.array([x, y, 0], np.float32)), score


def _nothing(reason: str) -> Answers:
    empty = np.zeros((0, LANDMARKS, 3), np.float32)
    return Answers(empty, np.zeros(0, np.bool_), np.zeros(0, np.float32), (0, 0), reason)


def answers_path(output: Path, item: Item) -> Path:
    return output / ANSWERS / item.kind / f"{item.file}.npz"


def stamp_of(path: Path) -> str:
    """What a file holds, by its length, its beginning and its end; "" for none.

    Answers about a file that holds something else are not used; when it was copied is no matter.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(_STAMP_BYTES), digest_size=16)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _STAMP_BYTES))
            digest.update(file.read())
    except OSError:
        return ""
    return f"{size}-{digest.hexdigest()}"


def save_answers(path: Path, answers: Answers, stamp: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part.npz")
    try:
        np.savez(
            part,
            landmarks=answers.landmarks,
            found=answers.found,
            score=answers.score,
            size=np.asarray(answers.size),
            reason=np.asarray(answers.reason),
            stamp=np.asarray(stamp),
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_answers(path: Path, stamp: str | None = None) -> Answers | None:
    """None where there are none, they are damaged or about another file."""
    try:
        with path.open("rb") as file, np.load(file) as data:
            made_of = str(data["stamp"])
            if stamp is not None and made_of != stamp:
                return None
            height, width = (int(v) for v in data["size"])
            return Answers(
                data["landmarks"], data["found"], data["score"], (height, width),
                str(data["reason"]), made_of,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def ask_all(items: Iterable[Item], output: Path, environment: Path) -> dict[str, str]:
    """Ask about every item that has no answers yet; why some have none: file -> reason.

    Raises :class:`DependencyError` where there is work and no teacher.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    reasons: dict[str, str] = {}
    work: list[Item] = []
    for item in items:
        known = load_answers(answers_path(output, item), stamp_of(item.path))
        if known is None:
            work.append(item)
        elif known.reason:
            reasons[item.file] = known.reason
    if not work:
        return reasons
    output.mkdir(parents=True, exist_ok=True)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Teacher(ensure_environment(environment), output / "teacher.log") as teacher,
        Progress(*columns, transient=True) as bar,
    ):
        task = bar.add_task("asking the teacher", total=len(work))
        for item in work:
            stamp = stamp_of(item.path)
            answers = ask(teacher, item)
            save_answers(answers_path(output, item), answers, stamp)
            if answers.reason:
                reasons[item.file] = answers.reason
            bar.advance(task)
    return reasons
