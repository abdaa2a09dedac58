# SPDX-License-Identifier: Apache-2.0
"""Checks of this machine, each on its own: what is there, what is missing, what helps.

One that fails, whatever it raises, is a finding and not the end of the others.  Nothing is changed,
no camera is opened and no network connection is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from runtime import leftovers, waits
from runtime.errors import DependencyError
from runtime.optional import PACKAGES

PROGRAM_TIMEOUT_S = 10  # of programs that are asked for their version
DEVICES = Path("/dev")
TEGRA_RELEASE = Path("/etc/nv_tegra_release")  # on a Jetson only
CPU_EXTRA = "pip install '.[cpu]'"


class State(str, Enum):
    """``missing`` is a choice that can be made up for, ``broken`` is there and does not work."""

    OK = "ok"
    MISSING = "missing"
    BROKEN = "broken"


class Missing(Exception):
    """Raised by a check for what is not installed or not connected."""


class Check(NamedTuple):
    """``look`` returns what it found, or raises :class:`Missing`, or anything else: broken."""

    name: str
    purpose: str  # what it is for
    remedy: str  # the command that helps
    look: Callable[[], str]
    needed: bool = False  # by the default path


class Finding(NamedTuple):
    """One line of the table."""

    name: str
    state: State
    detail: str  # what was found, or what is wrong
    purpose: str
    remedy: str  # empty where nothing needs help
    needed: bool


def examine(check: Check) -> Finding:
    """Never raises."""
    try:
        state, detail = State.OK, check.look()
    except Exception as err:  # a check may meet anything
        state = State.MISSING if isinstance(err, Missing) else State.BROKEN
        detail = " ".join(str(err).split()) or type(err).__name__
    remedy = "" if state is State.OK else check.remedy
    return Finding(check.name, state, detail, check.purpose, remedy, check.needed)


def _module(name: str, *others: str, run: bool = True) -> Callable[[], str]:
    """Versions; the first is really imported, or with ``run=False`` only looked for."""

    def look() -> str:
        for each in (name, *others):
            if importlib.util.find_spec(each) is None:
                raise Missing(f"{each} is not installed")
        module = importlib.import_module(name) if run else None
        found = [getattr(module, "__version__", None) or _version(name)]
        return ", ".join(found + [f"{each} {_version(each)}" for each in others])

    return look


def _version(module: str) -> str:
    try:
        return version(PACKAGES.get(module, (module,))[0])
    except PackageNotFoundError:
        return "installed by other means than pip"


def _ffmpeg() -> str:
    told = _module("av")()
    av: Any = importlib.import_module("av")
    if not {"h264", "aac"} <= set(av.codecs_available):
        raise RuntimeError(f"PyAV {told} was built without H.264 or AAC")
    return f"{told}, FFmpeg {getattr(av, 'ffmpeg_version_info', None) or 'of its own'}"


def _landmarks() -> str:
    from runtime.faces.align import predictor_path

    try:
        path = predictor_path()
    except DependencyError as err:
        raise Missing(str(err)) from None
    importlib.import_module("dlib").shape_predictor(str(path))
    return f"{path.name} opens"


def _onnxruntime(wanted: str = "CPUExecutionProvider") -> str:
    told = _module("onnxruntime")()
    providers = importlib.import_module("onnxruntime").get_available_providers()
    if wanted not in providers:
        raise Missing(f"this ONNX Runtime has no {wanted}")
    return f"{told}, providers {', '.join(p.removesuffix('ExecutionProvider') for p in providers)}"


def _models() -> str:
    """Every shipped pair: hashes as in its manifest, both files one pair, readable."""
    from runtime.backends.manifest import MANIFEST_FILE
    from runtime.backends.onnx import read_pair
    from runtime.models import model_dir, shipped_presets

    found = []
    for name in shipped_presets():
        if not (model_dir(name) / MANIFEST_FILE).is_file():
            raise RuntimeError(f"{name} has no {MANIFEST_FILE}")
        spec, _ = read_pair(model_dir(name))  # compares with the manifest's hashes
        found.append(f"{name} ({spec.model_id})")
    if not found:
        raise Missing("this installation ships no weights")
    return f"{', '.join(found)}, SHA-256 verified"


def _landlock() -> str:
    from runtime.media.sandbox import landlock

    if not (found := landlock.version()):
        raise Missing("files are decoded in a process of their own, which may read others")
    return f"version {found}"


def _gpu() -> str:
    from runtime.backends import cuda

    count = cuda.device_count()
    if not count:
        raise Missing("no NVIDIA GPU, or no driver for one")
    names = []
    try:
        for index in range(count):
            with cuda.Device(index) as d:
                number = int(d.call("cuDriverGetVersion"))  # 12060 is CUDA 12.6
                driver = f"driver for CUDA {number // 1000}.{number % 1000 // 10}"
                free = f"{d.free_bytes() / 1e9:.1f} GB free"
                names.append(
                    f"{d.name} (compute capability {d.compute_capability}, {driver}, {free})"
                )
    except DependencyError as err:
        raise RuntimeError(f"{count} found by the driver, but {err}") from None
    return ", ".join(names)


def _plugins() -> str:
    from runtime.backends import native

    try:
        return native.plugin_library().name
    except DependencyError:
        raise Missing("no plugin library was built") from None


def _cameras() -> str:
    """Device files of cameras, without opening one: it could be in use."""
    devices = sorted(DEVICES.glob("video*"), key=lambda p: (len(p.name), p.name))
    if not devices:
        raise Missing(f"no {DEVICES}/video*: none is connected, or this is not Linux")
    readable = [str(d) for d in devices if os.access(d, os.R_OK | os.W_OK)]
    if not readable:
        raise RuntimeError(f"{', '.join(map(str, devices))}: this user may not read them")
    return ", ".join(readable)


def _microphones() -> str:
    _module("sounddevice")()  # a library that it lacks is said when it is imported
    found: Any = importlib.import_module("sounddevice").query_devices()
    names = [d["name"] for d in found if d["max_input_channels"] > 0]
    if not names:
        raise Missing("none is connected")
    return ", ".join(names)


def _argus() -> str:
    if not Path("/tmp/argus_socket").exists():
        raise RuntimeError("the camera daemon's /tmp/argus_socket is not there")
    return _program("gst-inspect-1.0", "--exists", "nvarguscamerasrc")()


def _jetson() -> str:
    if not TEGRA_RELEASE.is_file():
        raise Missing("this is no Jetson")
    return TEGRA_RELEASE.read_text(encoding="utf-8").partition(", GCID")[0].lstrip("# ")


def _program(*command: str) -> Callable[[], str]:
    """What a program says, in one line."""

    def look() -> str:
        if shutil.which(command[0]) is None:
            raise Missing(f"{command[0]} is not installed")
        done = waits.run_program(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
        return ", ".join(s for line in done.stdout.splitlines()[:2] if (s := line.strip()))

    return look


def _test_run() -> str:
    """A synthetic second through decoding, faces, sound and model, all of it real."""
    import numpy as np

    from runtime.backends import load_backend
    from runtime.flow.driver import run
    from runtime.flow.windows import score_window
    from runtime.media.file import FileSource

    with leftovers.folder() as folder, load_backend() as backend:
        write_second(folder / "second.mp4")
        with FileSource(folder / "second.mp4") as source:
            summary = run(source, backend)
        spec, tokens = backend.spec, backend.spec.stream.window_tokens
        crops = np.zeros((tokens, spec.face.crop_px, spec.face.crop_px, 3), np.uint8)
        scores = score_window(backend, crops, np.zeros((tokens, spec.audio.token_dim), np.float32))
        if not np.isfinite(scores.logits_av).all():
            raise RuntimeError("the model answers with numbers that are none")
        if not summary.stats.verdicts:
            raise RuntimeError("the clip gave no verdict")
        return f"{summary.media_s:.1f} s of media in {summary.wall_s:.2f} s on {backend.provider}"


def write_second(path: Path) -> None:
    """25 pictures and a tone, as MPEG-4 and AAC."""
    import numpy as np

    from runtime.media.local_files import ffmpeg_name

    av: Any = importlib.import_module("av")
    with av.open(ffmpeg_name(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=25), out.add_stream("aac", rate=16_000)
        video.width, video.height, video.pix_fmt, audio.layout = 160, 120, "yuv420p", "mono"
        for index in range(25):
            grey = np.full((120, 160, 3), 5 * index, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        tone = 0.3 * np.sin(np.arange(16_000) * 0.17)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux(audio.encode(frame))
        for stream in (video, audio):
            out.mux(stream.encode(None))


JETSON = (
    Check("Jetson", "the release of JetPack's Linux", "", _jetson),
    Check("power mode", "speed and heat", "sudo nvpmodel -m 0", _program("nvpmodel", "-q")),
    Check("CSI camera", "--source csi://0", "sudo systemctl restart nvargus-daemon", _argus),
)
PROOF = Check("test run", "proof", "see what is broken above", _test_run, needed=True)
CHECKS = (
    Check("NumPy", "everything", CPU_EXTRA, _module("numpy"), needed=True),
    Check("PyAV", "reading files and streams", CPU_EXTRA, _ffmpeg, needed=True),
    Check("OpenCV", "cameras, crops", CPU_EXTRA, _module("cv2"), needed=True),
    Check("dlib", "finding faces", CPU_EXTRA, _module("dlib"), needed=True),
    Check("landmarks", "aligning faces", CPU_EXTRA, _landmarks, needed=True),
    Check("kaldi-native-fbank", "sound features", CPU_EXTRA, _module("kaldi_native_fbank"),
          needed=True),
    Check("ONNX Runtime", "running the model", CPU_EXTRA, _onnxruntime, needed=True),
    Check("rich", "tables", CPU_EXTRA, _module("rich"), needed=True),
    Check("models", "verdicts", "pip install --force-reinstall --no-deps .", _models, needed=True),
    Check("Landlock", "a decoder that reads its file alone",
          "Linux 5.13 or newer with landlock in its lsm= list; older containers forbid it",
          _landlock),
    Check("NVIDIA GPU", "TensorRT, --provider cuda", "nvidia-smi; in a container --gpus all", _gpu),
    Check("CUDA bindings", "engines", "pip install '.[cuda]'", _module("cuda", run=False)),
    Check("ONNX Runtime CUDA", "--provider cuda", "pip uninstall onnxruntime; pip install '.[gpu]'",
          lambda: _onnxruntime("CUDAExecutionProvider")),
    Check("TensorRT", "engines on servers and Jetsons",
          "pip install '.[tensorrt]'; on a Jetson apt-get install python3-libnvinfer",
          _module("tensorrt")),
    Check("TensorRT-RTX", "engines for RTX GPUs", "pip install '.[tensorrt-rtx]'",
          _module("tensorrt_rtx")),
    Check("TensorRT plugins", "engines with this project's kernels", "make native", _plugins),
    Check("cameras", "--source camera", "connect one; sudo usermod -aG video $USER", _cameras),
    Check("microphones", "sound of a live source",
          "connect one; pip install '.[mic]'; apt-get install libportaudio2", _microphones),
    Check("GStreamer", "--source csi://0", "apt-get install gstreamer1.0-tools",
          _program("gst-launch-1.0", "--version")),
    Check("web", "the page", "pip install '.[web]'", _module("fastapi", "uvicorn", run=False)),
    Check("Ray", "runtime.scan", "pip install '.[scan]'", _module("ray", "pyarrow", run=False)),
)  # fmt: skip


def checks(*, run: bool) -> list[Check]:
    """Those that make sense here: what only a Jetson has is not missing on another machine."""
    return [*CHECKS, *(JETSON if TEGRA_RELEASE.is_file() else ()), *((PROOF,) if run else ())]
