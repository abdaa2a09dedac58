# SPDX-License-Identifier: Apache-2.0
"""What a backend is: two functions on NumPy arrays, the spec they were made for, and a provider.

The names of the graphs' inputs and outputs are written here and nowhere else: the exporter gives
them to the ONNX files, every backend looks for them.

Shapes: N frames, B windows, T tokens, H = W = ``spec.face.crop_px``, C = ``spec.model.channels``,
E = ``spec.model.align_dim``, A = ``spec.audio.token_dim`` (104).
"""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.spec import FACE_POINTS, PairSpec

_Self = TypeVar("_Self")

FRAME_ENCODER_INPUTS = ("frames",)
FUSION_INPUTS = ("visual", "audio")
OP_DOMAIN = "msct"  # of the two custom ops
OP_VERSION = 1


class FaceOutput(NamedTuple):
    """Outputs of a frame encoder that follows the face, in its order; float32."""

    visual: NDArray[np.float32]  # [N, C]
    geometry: NDArray[np.float32]  # [N, G] what lips, chin and cheeks do, the pose taken out
    points: NDArray[np.float32]  # [N, P, 2] x, y in pixels of the crop; runtime.spec.FACE_POINTS
    presence: NDArray[np.float32]  # [N] probability that the crop shows a face


def encoder_outputs(spec: PairSpec) -> tuple[str, ...]:
    """What the frame encoder of a pair gives: all of :class:`FaceOutput`, or ``visual`` alone."""
    return FaceOutput._fields if spec.model.geometry_dim else FaceOutput._fields[:1]


def face_shapes(spec: PairSpec, frames: int) -> tuple[tuple[int, ...], ...]:
    """Of the arrays of a :class:`FaceOutput` for so many frames."""
    n, model = frames, spec.model
    return (n, model.channels), (n, model.geometry_dim), (n, len(FACE_POINTS), 2), (n,)


class FusionOutput(NamedTuple):
    """Outputs of the fusion graph, in its order; float32.  Index 1 of a pair of logits is fake."""

    logits_av: NDArray[np.float32]  # [B, 2] picture and sound together
    logits_a: NDArray[np.float32]  # [B, 2] sound
    logits_v: NDArray[np.float32]  # [B, 2] picture
    sync: NDArray[np.float32]  # [B, T] cosine of the two modalities after the last block
    align_v: NDArray[np.float32]  # [B, T, E] unit norm, from the picture alone
    align_a: NDArray[np.float32]  # [B, T, E] unit norm, from the sound alone
    embedding: NDArray[np.float32]  # [B, 2C] the two class tokens


FUSION_OUTPUTS: tuple[str, ...] = FusionOutput._fields


@runtime_checkable
class Backend(Protocol):
    """A loaded pair.  Not thread-safe unless a backend says so; use it as a context manager."""

    @property
    def spec(self) -> PairSpec:
        """Read from the model's own metadata."""

    @property
    def provider(self) -> str:
        """What really computes, e.g. ``CPUExecutionProvider``."""

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB crops [N, H, W, 3] -> visual features [N, C]; N may be 0.

        Raises :class:`ValueError` for another shape or type.
        """

    def follow(self, frames: NDArray[np.uint8]) -> FaceOutput:
        """The same crops -> all that the encoder says of them; N may be 0.

        Raises :class:`ValueError` as :meth:`encode`, and where the model's encoder gives features
        alone (``spec.model.geometry_dim`` is 0).
        """

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        """Visual features [B, T, C] and audio tokens [B, T, A] -> the seven outputs.

        A missing modality is all zeros.  Raises :class:`ValueError` for another shape or type.
        """

    def close(self) -> None:
        """Free the model; calling it twice is fine."""

    def __enter__(self: _Self) -> _Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Phases(NamedTuple):
    """Parts of one call by the device's own clock, in milliseconds."""

    upload_ms: float  # H2D
    compute_ms: float
    download_ms: float  # D2H


@runtime_checkable
class PhasedBackend(Protocol):
    """A backend on a device of its own, which can tell the parts of a call: for measuring."""

    def encode_phases(self, frames: NDArray[np.uint8]) -> Phases:
        """Of :meth:`Backend.encode`."""

    def fuse_phases(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> Phases:
        """Of :meth:`Backend.fuse`."""


def check_frames(frames: NDArray[np.uint8], spec: PairSpec) -> None:
    """Raise :class:`ValueError` unless ``frames`` is uint8 [N, H, W, 3] as in the spec."""
    side = spec.face.crop_px
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (side, side, 3):
        raise ValueError(
            f"frames must be uint8 [N, {side}, {side}, 3], not {frames.dtype} {list(frames.shape)}"
        )


def check_follows(spec: PairSpec) -> None:
    """Raise :class:`ValueError` unless the frame encoder follows the face."""
    if not spec.model.geometry_dim:
        raise ValueError(f"the frame encoder of {spec.model_id} gives features alone")


def check_tokens(visual: NDArray[np.float32], audio: NDArray[np.float32], spec: PairSpec) -> None:
    """Raise :class:`ValueError` unless both are float32 [B, T, *] of one B >= 1 and one T >= 1."""
    for name, array, width in (
        ("visual", visual, spec.model.channels),
        ("audio", audio, spec.audio.token_dim),
    ):
        if array.dtype != np.float32 or array.ndim != 3 or array.shape[2] != width:
            raise ValueError(
                f"{name} must be float32 [B, T, {width}], not {array.dtype} {list(array.shape)}"
            )
    if visual.shape[:2] != audio.shape[:2] or 0 in visual.shape:
        raise ValueError(
            "visual and audio must have the same B and T, both at least 1, "
            f"not {list(visual.shape[:2])} and {list(audio.shape[:2])}"
        )
