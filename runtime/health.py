# SPDX-License-Identifier: Apache-2.0
"""Checks of this machine, each on its own: what is there, what is missing, what helps.

One that fails, whatever it raises, is a finding and not the end of the others.  Nothing is changed,
no camera is opened and no network connection is made.  :mod:`runtime.doctor` prints them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.errors import DependencyError

PROGRAM_TIMEOUT_S = 10  # of programs that are asked for their version
LEAST_FREE_BYTES = 500 << 20  # below it engines and recordings soon have no room
DEVICES = Path("/dev")
TEGRA_RELEASE = Path("/etc/nv_tegra_release")  # on a Jetson only
CPU_EXTRA = "pip install '.[cpu]'"


class State(str, Enum):
    """``missing`` is a choice that can be made up for, ``broken`` is there and does not work."""

    OK = "ok"
    MISSING = "missing"
    BROKEN = "broken"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    state: State
    detail: str  # what was found, or what is wrong
    purpose: str  # what it is for
    remedy: str = ""  # the command that helps; empty where nothing needs help
    needed: bool = False  # by the default path


class Missing(Exception):
    """Raised by a check for what is not installed or not connected.

    ``remedy`` where it is another than the check's usual one.
    """

    def __init__(self, detail: str, remedy: str | None = None) -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True)
class Check:
    """``look`` returns what it found, or raises :class:`Missing`, or anything else: broken."""

    name: str
    purpose: str
    remedy: str
    look: Callable[[], str]
    needed: bool = False


def examine(check: Check) -> Finding:
    """Never raises."""
    remedy = check.remedy
    try:
        state, detail = State.OK, check.look()
        remedy = ""
    except Missing as err:
        state, detail = State.MISSING, _one_line(err)
        remedy = check.remedy if err.remedy is None else err.remedy
    except Exception as err:  # a check may meet anything
        state, detail = State.BROKEN, _one_line(err)
    return Finding(check.name, state, detail, check.purpose, remedy, check.needed)


# The default path


def _python() -> str:
    found = platform.python_version()
    return f"{found}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _package(module: str, distribution: str) -> Callable[[], str]:
    """The package's version, once it has really been imported."""

    def look() -> str:
        if importlib.util.find_spec(module) is None:
            raise Missing("not installed")
        importlib.import_module(module)
        try:
            return version(distribution)
        except PackageNotFoundError:
            return "installed by other means than pip"

    return look


def _module(name: str) -> Callable[[], str]:
    """The version that the module itself tells, whoever installed it."""

    def look() -> str:
        if importlib.util.find_spec(name) is None:
            raise Missing("not installed")
        return str(importlib.import_module(name).__version__)

    return look


def _ffmpeg() -> str:
    """PyAV and the FFmpeg in it: containers, codecs and protocols that sources need."""
    if importlib.util.find_spec("av") is None:
        raise Missing("PyAV is not installed")
    av: Any = importlib.import_module("av")
    if "h264" not in av.codecs_available or "aac" not in av.codecs_available:
        raise RuntimeError(f"PyAV {av.__version__} was built without H.264 or AAC")
    wanted = ("rtsp", "hls", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
    formats = [name.split(",")[0] for name in wanted if name in _formats(av)]
    return f"PyAV {av.__version__}, FFmpeg {_ffmpeg_version(av)}, {', '.join(formats)}"


def _formats(av: Any) -> set[str]:
    found: set[str] = set(av.formats_available)
    for name in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"):
        if set(name.split(",")) & found:
            found.add(name)
    return found


def _ffmpeg_version(av: Any) -> str:
    found = getattr(av, "ffmpeg_version_info", None)
    if found:
        return str(found)
    numbers = av.library_versions.get("libavcodec", ())
    return "libavcodec " + ".".join(map(str, numbers))


def _landmarks() -> str:
    from runtime.faces import predictor_path

    try:
        path = predictor_path()
    except DependencyError as err:
        raise Missing(str(err)) from None
    importlib.import_module("dlib").shape_predictor(str(path))
    return f"{path.name}, {path.stat().st_size / 1e6:.1f} MB, opens"


def _onnxruntime() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        raise Missing("not installed")
    runtime: Any = importlib.import_module("onnxruntime")
    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers()
    )
    return f"{runtime.__version__}, providers {providers}"


def _models() -> str:
    """Every shipped pair: hashes as in its manifest, both files one pair, readable."""
    from runtime.backends.manifest import MANIFEST_FILE
    from runtime.backends.onnx import read_pair
    from runtime.models import model_dir, shipped_presets

    found = []
    for name in shipped_presets():
        folder = model_dir(name)
        if not (folder / MANIFEST_FILE).is_file():
            raise RuntimeError(f"{name} has no {MANIFEST_FILE}")
        spec, _ = read_pair(folder)  # compares with the manifest's hashes
        found.append(f"{name} ({spec.model_id})")
    if not found:
        raise Missing("this installation ships no weights")
    return f"{', '.join(found)}, SHA-256 verified"


def _landlock() -> str:
    from runtime.media import landlock

    version = landlock.version()
    if not version:
        raise Missing("files are decoded in a process of their own, which may read others")
    return f"version {version}"


def _disk() -> str:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise RuntimeError(f"{free / 1e9:.1f} GB free in {folder}")
    return f"{free / 1e9:.1f} GB free in the working directory"


# GPUs


def _gpu() -> str:
    from runtime.backends import cuda

    count = cuda.device_count()
    if not count:
        raise Missing("no NVIDIA GPU, or no driver for one")
    try:
        names = []
        for index in range(count):
            with cuda.Device(index) as device:
                free = device.free_bytes() / 1e9
                driver = int(device.call("cuDriverGetVersion"))  # 12060 is CUDA 12.6
                names.append(
                    f"{device.name} (compute capability {device.compute_capability}, driver for "
                    f"CUDA {driver // 1000}.{driver % 1000 // 10}, {free:.1f} GB free)"
                )
    except DependencyError as err:
        raise RuntimeError(f"{count} found by the driver, but {err}") from None
    return ", ".join(names)


def _bindings() -> str:
    if importlib.util.find_spec("cuda") is None:
        raise Missing("not installed")
    try:
        return version("cuda-bindings")
    except PackageNotFoundError:
        return version("cuda-python")


def _cuda_provider() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        raise Missing("ONNX Runtime is not installed")
    if (
        "CUDAExecutionProvider"
        not in importlib.import_module("onnxruntime").get_available_providers()
    ):
        raise Missing("this ONNX Runtime is built for CPUs")
    return "in this ONNX Runtime (whether it comes up, runtime.stream --provider cuda says)"


def _plugins() -> str:
    from runtime import native

    try:
        path = native.plugin_library()
    except DependencyError:
        raise Missing("no plugin library was built") from None
    return f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"


def _native() -> str:
    from runtime import native

    found = native.capabilities()
    if not found.built:
        raise Missing(str(found.reason))
    cuda = ", ".join(found.cuda_architectures) or "none"
    return f"built with {found.compiler}, CUDA architectures {cuda}"


# Cameras, microphones, pages


def _cameras() -> str:
    """Device files of cameras, without opening one: it could be in use."""
    if not sys.platform.startswith("linux"):
        raise Missing("only Linux lists them; runtime.stream --source camera finds out", "")
    devices = sorted(DEVICES.glob("video*"), key=lambda p: (len(p.name), p.name))
    if not devices:
        raise Missing("no /dev/video*: none is connected")
    readable = [str(d) for d in devices if os.access(d, os.R_OK | os.W_OK)]
    if not readable:
        raise RuntimeError(f"{', '.join(map(str, devices))}: this user may not read them")
    return ", ".join(readable)


def _microphones() -> str:
    if importlib.util.find_spec("sounddevice") is None:
        raise Missing("sounddevice is not installed")
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except OSError:  # it looks for the library when it is imported
        raise Missing(
            "the library PortAudio is not installed", "apt-get install libportaudio2"
        ) from None
    names = [d["name"] for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
    if not names:
        raise Missing("none is connected", "connect one")
    return ", ".join(names)


def _gstreamer() -> str:
    if shutil.which("gst-launch-1.0") is None:
        raise Missing("gst-launch-1.0 is not installed")
    return _output(["gst-launch-1.0", "--version"])


def _argus() -> str:
    if shutil.which("gst-inspect-1.0") is None:
        raise Missing("gst-inspect-1.0 is not installed")
    if _returncode(["gst-inspect-1.0", "--exists", "nvarguscamerasrc"]) != 0:
        raise Missing("GStreamer has no nvarguscamerasrc: this is no Jetson, or its plugin is gone")
    if not Path("/tmp/argus_socket").exists():
        raise RuntimeError("nvarguscamerasrc is there, its daemon's /tmp/argus_socket is not")
    return "nvarguscamerasrc and its daemon's socket"


def _jetson() -> str:
    if not TEGRA_RELEASE.is_file():
        raise Missing("this is no Jetson")
    first = TEGRA_RELEASE.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").partition(", GCID")[0]


def _power() -> str:
    if shutil.which("nvpmodel") is None:
        raise Missing("this is no Jetson")
    return _output(["nvpmodel", "-q"])


def _web() -> str:
    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise Missing(f"{name} is not installed")
    return f"fastapi {version('fastapi')}, uvicorn {version('uvicorn')}"


def _scan() -> str:
    for name in ("ray", "pyarrow"):
        if importlib.util.find_spec(name) is None:
            raise Missing(f"{name} is not installed")
    return f"ray {version('ray')}, pyarrow {version('pyarrow')}"


JETSON = (
    Check("Jetson", "the release of JetPack's Linux", "", _jetson),
    Check("power mode", "speed against heat on a Jetson", "sudo nvpmodel -m 0", _power),
    Check("CSI camera", "--source csi://0 on a Jetson", "sudo systemctl restart nvargus-daemon",
          _argus),
)  # fmt: skip
CHECKS = (
    Check("Python", "everything", "install Python 3.10 to 3.13", _python, needed=True),
    Check("NumPy", "everything", CPU_EXTRA, _package("numpy", "numpy"), needed=True),
    Check("PyAV", "reading files and streams", CPU_EXTRA, _ffmpeg, needed=True),
    Check("OpenCV", "cameras, crops", CPU_EXTRA, _module("cv2"), needed=True),
    Check("dlib", "finding faces", CPU_EXTRA, _module("dlib"), needed=True),
    Check("landmarks", "aligning faces", CPU_EXTRA, _landmarks, needed=True),
    Check("kaldi-native-fbank", "sound features", CPU_EXTRA,
          _package("kaldi_native_fbank", "kaldi-native-fbank"), needed=True),
    Check("ONNX Runtime", "running the model", CPU_EXTRA, _onnxruntime, needed=True),
    Check("rich", "tables", CPU_EXTRA, _package("rich", "rich"), needed=True),
    Check("models", "verdicts", "pip install --force-reinstall --no-deps .", _models, needed=True),
    Check("Landlock", "a decoder that reads its file alone",
          "Linux 5.13 or newer with landlock in its lsm= list; older containers forbid it",
          _landlock),
    Check("disk", "engines, recordings", "free some space", _disk),
    Check("native kernels", "checks and benchmarks", "install a C++ compiler, then pip install .",
          _native),
    Check("NVIDIA GPU", "TensorRT, --provider cuda", "nvidia-smi; in a container --gpus all", _gpu),
    Check("CUDA bindings", "engines", "pip install '.[cuda]'", _bindings),
    Check("ONNX Runtime CUDA", "--provider cuda",
          "pip uninstall onnxruntime; pip install '.[gpu]'", _cuda_provider),
    Check("TensorRT", "engines on servers and Jetsons",
          "pip install '.[tensorrt]'; on a Jetson apt-get install python3-libnvinfer",
          _module("tensorrt")),
    Check("TensorRT-RTX", "engines for RTX GPUs", "pip install '.[tensorrt-rtx]'",
          _module("tensorrt_rtx")),
    Check("TensorRT plugins", "engines with this project's kernels", "make native", _plugins),
    Check("cameras", "--source camera", "connect one; sudo usermod -aG video $USER", _cameras),
    Check("microphones", "sound of a live source", "pip install '.[mic]'", _microphones),
    Check("GStreamer", "--source csi://0", "apt-get install gstreamer1.0-tools", _gstreamer),
    Check("web", "the page", "pip install '.[web]'", _web),
    Check("Ray", "runtime.scan", "pip install '.[scan]'", _scan),
)  # fmt: skip


def checks(*, run: bool) -> list[Check]:
    """Those that make sense here: what only a Jetson has is not missing on another machine."""
    found = list(CHECKS)
    if TEGRA_RELEASE.is_file():
        found += JETSON
    if run:
        found.append(Check("test run", "proof", "see what is broken above", _test_run, needed=True))
    return found


def _test_run() -> str:
    """A synthetic clip through decoding, faces, sound and model, all of it real."""
    from runtime.backends import load_backend
    from runtime.media.file import FileSource
    from runtime.pipeline import run

    with tempfile.TemporaryDirectory() as folder, load_backend() as backend:
        path = Path(folder) / "second.mp4"
        _write_second(path)
        with FileSource(path) as source:
            summary = run(source, backend)
        spec = backend.spec
        np: Any = importlib.import_module("numpy")
        side, tokens = spec.face.crop_px, spec.stream.window_tokens
        crops = np.zeros((tokens, side, side, 3), np.uint8)  # no face is in the clip
        sound = np.zeros((1, tokens, spec.audio.token_dim), np.float32)
        scores = backend.fuse(backend.encode(crops)[None], sound)
        if not np.isfinite(scores.logits_av).all():
            raise RuntimeError("the model answers with numbers that are none")
        provider = backend.provider
    if not summary.stats.verdicts:
        raise RuntimeError("the clip gave no verdict")
    return (
        f"{summary.media_s:.1f} s of media in {summary.wall_s:.2f} s on {provider}, "
        f"{summary.stats.verdicts} verdict"
    )


def _write_second(path: Path) -> None:
    """25 pictures and a tone, as MPEG-4 and AAC."""
    av: Any = importlib.import_module("av")
    np: Any = importlib.import_module("numpy")
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=25), out.add_stream("aac", rate=16_000)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        audio.layout = "mono"
        for index in range(25):
            grey = np.full((120, 160, 3), 5 * index, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        tone = 0.3 * np.sin(np.arange(16_000) * 0.17)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux(audio.encode(frame))
        for stream in (video, audio):
            out.mux(stream.encode(None))


def _output(command: list[str]) -> str:
    """What a program says, in one line."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return ", ".join(line.strip() for line in done.stdout.splitlines()[:2] if line.strip())


def _returncode(command: list[str]) -> int:
    return subprocess.run(
        command, capture_output=True, timeout=PROGRAM_TIMEOUT_S, check=False
    ).returncode


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
