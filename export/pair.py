# SPDX-License-Identifier: Apache-2.0
"""The ONNX pair that goes into a folder: where it comes from, its types, and the check of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.parity import (
    LOGIT_LIMIT_FP32,
    PROBABILITY_LIMIT_FP16,
    PROBABILITY_LIMIT_INT8,
    Form,
    Parity,
    Window,
    compare,
    real_windows,
)
from runtime import leftovers
from runtime.backends.onnx import OnnxBackend, read_pair
from runtime.errors import UsageError
from runtime.faces.stage import Follow
from runtime.media.local_files import media_files
from runtime.media.open import MEDIA_SUFFIXES
from runtime.models import PRESETS, model_dir, model_folder, shipped_presets
from runtime.optional import optional
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE, PairSpec

PAIR = (FRAME_ENCODER_FILE, FUSION_FILE)
_MORE_CLIPS = (
    "give more --calibration clips, of the kind that the device will see, or leave out --int8"
)
Step = Callable[[str], None]


@dataclass
class Source:
    """The pair to start from, fp32 or already typed."""

    folder: Path
    origin: str
    spec: PairSpec
    parity: Parity | None = None  # against torch, when it was exported just now


@dataclass
class Probes:
    """Real windows for the checks."""

    real: Sequence[Window] = ()  # of --parity-clip
    held_out: Sequence[Window] = ()  # of the clips that a calibration did not see


@dataclass
class Calibration:
    """What ``--calibration`` gave: clips by use, and the windows in them."""

    used: list[Path] = field(default_factory=list)
    held_out: list[Path] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    check: list[Window] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        return {
            "clips": [str(clip) for clip in self.used],
            "frames": sum(len(window.frames) for window in self.windows),
            "held_out_clips": [str(clip) for clip in self.held_out],
            "check_windows": len(self.check),
        }


@contextlib.contextmanager
def open_source(
    *, preset: str, onnx: Path | None, checkpoint: Path | None, real: Path | None, step: Step
) -> Iterator[tuple[Source, Probes]]:
    """A shipped preset, a folder with a pair, or what :mod:`export.graphs` makes of weights."""
    if onnx is not None or (checkpoint is None and preset in shipped_presets()):
        folder = model_dir(preset) if onnx is None else model_folder(onnx)
        spec, _ = read_pair(folder)
        origin = f"shipped preset {preset}" if onnx is None else f"ONNX pair {onnx}"
        with encoder_of(folder, spec) as follow:
            probes = Probes(clip_windows(real, spec, step, follow))
        yield Source(folder, origin, spec), probes
        return
    if checkpoint is None and preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    if checkpoint is not None and not checkpoint.is_file():
        raise UsageError(f"no such checkpoint: {checkpoint}")
    step("load torch")
    graphs = _graphs()
    if checkpoint is not None:
        model, spec = graphs.from_checkpoint(checkpoint)
        origin = f"checkpoint {checkpoint}"
    else:
        model, spec = graphs.untrained(preset)
        origin = f"preset {preset}, random weights"
    probes = Probes(clip_windows(real, spec, step, graphs.TorchPair(model).follow))
    with leftovers.folder("msct-export-") as scratch:
        folder = scratch / "pair"
        exported = graphs.export_pair(model, spec, folder, real=probes.real, progress=step)
        del model  # the files are all that is needed from here on
        yield Source(folder, origin, exported.spec, exported.parity), probes


def _graphs() -> Any:
    """:mod:`export.graphs`, loaded only when weights have to become an ONNX pair."""
    shipped = ", ".join(shipped_presets()) or "none"
    remedy = (
        "pip install '.[cpu,train,export]', or start from an ONNX pair with --onnx DIR or a "
        f"shipped preset ({shipped})"
    )
    with optional("to write graphs", remedy=remedy):
        import export.graphs
    return export.graphs


@contextlib.contextmanager
def encoder_of(folder: Path, spec: PairSpec) -> Iterator[Follow | None]:
    """What follows the faces of the pair in ``folder``; None: no encoder does."""
    if spec.face.stage == "dlib":
        yield None
        return
    with OnnxBackend(folder) as backend:
        yield backend.follow


def clip_windows(
    clip: Path | None, spec: PairSpec, step: Step, follow: Follow | None
) -> list[Window]:
    """Windows of one clip, none without one."""
    if clip is None:
        return []
    step(f"read {clip.name}")
    return real_windows(clip, spec, follow=follow)


def calibration_clips(paths: Sequence[Path]) -> list[Path]:
    """Clips, and what is in folders of them, each once; :class:`UsageError` for what is not."""
    clips: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
        clips += media_files(path, MEDIA_SUFFIXES) if path.is_dir() else [path]
    return list(dict.fromkeys(clips))


def calibration(paths: Sequence[Path], source: Source, step: Step) -> Calibration:
    """Read the clips of ``--calibration``; a part of them is kept apart for the check.

    Raises :class:`UsageError` for fewer than two clips, :class:`runtime.errors.UserError` for one
    that cannot be read or shows no face with sound.
    """
    from export.quantize import check_windows, split_clips

    clips = calibration_clips(paths)
    if len(clips) < 2:
        raise UsageError(
            f"--calibration gives {len(clips)} clips; at least two are needed, one of them for "
            "the check"
        )
    used, held_out = split_clips(clips)
    found = Calibration(used, held_out)
    with encoder_of(source.folder, source.spec) as follow:
        for clip in used:
            found.windows += clip_windows(clip, source.spec, step, follow)
        kept = [w for clip in held_out for w in clip_windows(clip, source.spec, step, follow)]
    found.check = check_windows(kept)
    return found


def write_pair(
    source: Path, target: Path, *, half: bool, clips: Calibration | None, for_engine: bool
) -> None:
    """Both files of ``source``, quantised and typed fp16 as asked; else byte for byte."""
    if not half and clips is None:
        for name in PAIR:
            shutil.copyfile(source / name, target / name)
        return
    with optional(f"for {'--fp16' if half else '--int8'}"):
        import onnx

        from export import precision, quantize
    for name in PAIR:
        model = onnx.load_from_string((source / name).read_bytes())
        if clips is not None:
            if name == FRAME_ENCODER_FILE:
                frames = [window.frames for window in clips.windows]
                model = quantize.to_int8(model, frames, for_engine=for_engine)
            else:
                model = quantize.restamped(model)
        if half:
            model = precision.to_fp16(model)
        (target / name).write_bytes(model.SerializeToString(deterministic=True))


def check_pair(source: Source, made: Path, probes: Probes) -> tuple[PairSpec, list[Parity]]:
    """Open what was made as the runtime does and compare it with its source."""
    checks = [source.parity] if source.parity is not None else []
    with OnnxBackend(made) as ours:
        name = f"written {ours.spec.precision} pair"
        same = ours.spec.precision == source.spec.precision
        logits = LOGIT_LIMIT_FP32 if same else None
        return ours.spec, [*checks, compare_with(source, ours, name, probes, logits=logits)]


def compare_with(
    source: Source, form: Form, name: str, probes: Probes, *, logits: float | None = None
) -> Parity:
    """Compare ``form`` with the source pair in ONNX Runtime; raises ParityError beyond a limit.

    The limit is ``logits`` where given.  Else it is one of probabilities: for int8 on the clips
    that its calibration did not see, for fp16 on all probes.
    """
    with OnnxBackend(source.folder) as theirs:
        names, spec = (name, f"source {theirs.spec.precision} pair"), source.spec
        if probes.held_out:
            parity = compare(form, theirs, spec, names=names, real=probes.held_out, random=False)
            parity.check(probability=PROBABILITY_LIMIT_INT8, remedy=_MORE_CLIPS)
            return parity
        parity = compare(form, theirs, spec, names=names, real=probes.real)
        parity.check(logits=logits, probability=None if logits else PROBABILITY_LIMIT_FP16)
        return parity
