# SPDX-License-Identifier: Apache-2.0
"""What :mod:`runtime.calibrate` measured at one site, as a JSON file, and how it is applied.

A :class:`SiteCalibration` holds numbers only: no name of a source, no media, no embedding.  It
belongs to one model pair and one length of window.  Applying it changes two values of the pair's
spec and nothing else: the threshold on ``p_fake`` (with its rate), and the constant A/V offset, by
which the sound is shifted from the first window on.  ``av_offset_ms`` of
the verdicts stays the total, so that a site whose offset moves away from the file's is seen.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend, FaceOutput, FusionOutput
from runtime.closing import Closing
from runtime.errors import UserError
from runtime.files import write_json
from runtime.spec import PairSpec, SpecError, StreamSpec, build

SITE_VERSION = 2  # 1 also had a domain bound
MAX_BYTES = 1 << 20  # of a file: the real ones have about two kilobytes
AGAIN = "calibrate again: python -m runtime.calibrate"


class SiteError(UserError):
    """A site file that cannot be read, is damaged, or belongs to another model."""


@dataclass(frozen=True)
class Offset:
    """The constant A/V offset; above 0 the sound comes late."""

    tokens: int  # 0 where it was not found
    ms: float
    found: bool  # most windows had a clear peak near it
    spread_low_tokens: int  # 5th and 95th percentile of the windows with a clear peak
    spread_high_tokens: int
    clear_windows: int
    measured_windows: int


@dataclass(frozen=True)
class Threshold:
    """The threshold on p_fake: split conformal on the highest window of each block."""

    threshold: float
    replaces: float  # the model's own
    false_alarm_rate: float  # what it promises for a block, on average over calibrations
    quantile: float  # the conformal one, which threshold and hysteresis together exceed
    rank: int  # of the quantile among the blocks
    rate_low: float  # 95 % interval of the rate of a threshold with this rank
    rate_high: float
    alarms_before: int  # of the blocks, under the model's own threshold, and
    alarms_after: int  # under this one: few by construction, they are the ones that made it
    shifted: int  # windows that were given later sound, one a block: a crude forgery
    shifted_before: int  # of these called fake under the model's own threshold, and
    shifted_after: int  # under this one


@dataclass(frozen=True)
class SiteCalibration:
    """The file: what was measured, on how much, and what it replaces."""

    model_id: str
    pair_id: str
    created: str  # ISO 8601, UTC
    source_kind: str  # camera, file, rtsp, ...: never a name or an address
    recordings: int
    duration_s: float
    window_tokens: int
    hop_tokens: int
    block_tokens: int
    blocks: int  # with at least one judged window
    windows: int  # of all faces
    used_windows: int
    left_out: dict[str, int]  # windows by reason
    offset: Offset
    threshold: Threshold
    version: int = SITE_VERSION

    def __post_init__(self) -> None:
        for name, value in _numbers("", dataclasses.asdict(self)):
            if not math.isfinite(value):
                raise SpecError(f"SiteCalibration: {name} is {value}")
        for name in ("threshold", "false_alarm_rate"):
            if not 0 <= (value := getattr(self.threshold, name)) <= 1:
                raise SpecError(f"SiteCalibration: threshold.{name} is {value}, not from 0 to 1")
        try:
            datetime.fromisoformat(self.created)
        except ValueError:
            raise SpecError(f"SiteCalibration: created is {self.created!r}, no date") from None

    @property
    def headline(self) -> str:
        """One line for the header of a stream."""
        t, o = self.threshold, self.offset
        offset = f", A/V offset {o.ms:+.0f} ms" if o.tokens else ""
        return (
            f"site calibration of {self.created[:10]}, threshold {t.threshold:.4g} at "
            f"{100 * t.false_alarm_rate:.3g} %{offset}"
        )

    def to_json(self) -> str:
        """Indented JSON: people read it."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> SiteCalibration:
        """Raises :class:`runtime.spec.SpecError` for text that is no site calibration."""
        try:
            data = json.loads(text)
        except (RecursionError, ValueError) as err:
            raise SpecError(f"it is not JSON ({err})") from None
        if not isinstance(data, dict) or data.get("version") != SITE_VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise SpecError(f"its version is {found!r}, this runtime reads {SITE_VERSION}")
        return build(cls, data)

    def write(self, path: Path) -> None:
        """Whole or not at all.  Raises :class:`runtime.errors.UserError` where it cannot."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> SiteCalibration:
        """Raises :class:`SiteError` for a file that is missing, damaged or of another version."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise SpecError("it is far too large")
            return cls.from_json(data.decode("utf-8-sig"))
        except OSError as err:
            why = (err.strerror or str(err)).lower()
            raise SiteError(f"cannot read {path}: {why}; {AGAIN} --output {path}") from None
        except (SpecError, UnicodeDecodeError) as err:
            raise SiteError(f"{path} is no site calibration: {err}; {AGAIN}") from None

    def check_model(self, spec: PairSpec) -> None:
        """Raises :class:`SiteError` unless it was made with this very pair."""
        if self.pair_id != spec.pair_id:
            raise SiteError(
                f"the site calibration was made with {self.model_id} (pair {self.pair_id}), not "
                f"with {spec.model_id} (pair {spec.pair_id}): its numbers mean nothing here; "
                f"{AGAIN} with this model, or give --model that one"
            )

    def check_windows(self, stream: StreamSpec, token_hz: float) -> None:
        """Raises :class:`SiteError` for windows of another length or distance."""
        if (self.window_tokens, self.hop_tokens) != (stream.window_tokens, stream.hop_tokens):
            raise SiteError(
                f"the site calibration is for windows of {self.window_tokens / token_hz:g} s every "
                f"{self.hop_tokens / token_hz:g} s, not of {stream.window_tokens / token_hz:g} s "
                f"every {stream.hop_tokens / token_hz:g} s: give --window and --hop as there, or "
                f"{AGAIN}"
            )

    def apply(self, spec: PairSpec) -> PairSpec:
        """The pair's spec at this site; see the module for what changes.

        Raises :class:`SiteError` for another pair, and for an offset that the spec does not allow.
        """
        self.check_model(spec)
        try:
            stream = replace(spec.stream, av_offset_tokens=self.offset.tokens)
        except SpecError as err:
            raise SiteError(f"the site calibration cannot be used: {err}; {AGAIN}") from None
        calibration = replace(
            spec.calibration,
            threshold=self.threshold.threshold,
            false_alarm_rate=self.threshold.false_alarm_rate,
        )
        return replace(spec, stream=stream, calibration=calibration)


class SiteBackend(Closing):
    """A backend whose spec says what holds at a site; it computes what the other one computes."""

    def __init__(self, backend: Backend, site: SiteCalibration) -> None:
        """Raises :class:`SiteError` for a site calibration of another model."""
        self._backend = backend
        self.spec = site.apply(backend.spec)

    @property
    def provider(self) -> str:
        return self._backend.provider

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._backend.encode(frames)  # [N, H, W, 3] -> [N, C]

    def follow(self, frames: NDArray[np.uint8]) -> FaceOutput:
        return self._backend.follow(frames)

    def fuse(self, visual: NDArray[np.float32], audio: NDArray[np.float32]) -> FusionOutput:
        return self._backend.fuse(visual, audio)

    def close(self) -> None:
        self._backend.close()


def _numbers(where: str, value: Any) -> list[tuple[str, float]]:
    """Every number in nested objects, with its path."""
    if isinstance(value, dict):
        return [n for key, v in value.items() for n in _numbers(f"{where}.{key}", v)]
    return [(where[1:], float(value))] if isinstance(value, (int, float)) else []
