# SPDX-License-Identifier: Apache-2.0
"""Files that people hand in besides media: whatever is in them, they are read or refused in words.

Each test starts from a real file, damages it as hypothesis likes, and asks for one of two ends: a
value of the right kind, or the reader's own error.  Anything else is a traceback for somebody.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.backends.manifest import (
    MANIFEST_FILE,
    EngineFacts,
    check_bytes,
    engine_facts,
    read_manifest,
)
from runtime.backends.onnx import read_pair
from runtime.backends.onnx_file import OnnxFile, WireError, read_onnx
from runtime.calibrate.site import SiteCalibration, SiteError
from runtime.command import guarded
from runtime.errors import MediaError, ModelError, UsageError, UserError
from runtime.media.file import FileSource
from runtime.media.open import LIST_SUFFIX, expand_sources
from runtime.models import DEFAULT_PRESET
from runtime.spec import FUSION_FILE, PairSpec, SpecError
from tests.runtime.backends.test_manifest import FACTS
from tests.runtime.calibrate.test_site import SITE
from tests.runtime.doubles import SPEC

MODEL = Path(__file__).parents[3] / "runtime" / "models" / DEFAULT_PRESET
quickly = settings(max_examples=60, deadline=None, derandomize=True)

SCALARS = (
    st.none() | st.booleans() | st.text(max_size=8) | st.floats()
    | st.integers() | st.sampled_from([10**400, -(2**63), 2**64, 1e308, -0.0])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """``good`` with one or two values anywhere in it replaced, or taken away, or one added."""
    data = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        at = data
        while True:
            key = draw(st.sampled_from(sorted(at)))
            if not isinstance(at[key], dict) or not at[key] or draw(st.booleans()):
                break
            at = at[key]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if what == "remove" and len(at) > 1:
            del at[key]
        else:
            at[draw(st.text(max_size=8)) if what == "add" else key] = draw(VALUES)
    return data


DEEP = "[" * 100_000


# --- a site calibration ---------------------------------------------------------------------


@quickly
@given(damaged(json.loads(SITE.to_json())))
def test_a_site_file_with_other_values(data: dict[str, Any]) -> None:
    try:
        site = SiteCalibration.from_json(json.dumps(data))
    except SpecError:
        return
    try:
        assert isinstance(site.apply(SPEC), PairSpec)
    except SiteError:
        return
    assert site.headline.isprintable()


@pytest.mark.parametrize(
    "content", [DEEP.encode(), b"\xff\xfe", b"", b"9" * 5000, b" " * (2 << 20)]
)
def test_a_site_file_that_is_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    path.write_bytes(content)
    with pytest.raises(SiteError, match="no site calibration"):
        SiteCalibration.read(path)


# --- a model --------------------------------------------------------------------------------


@quickly
@given(damaged(json.loads(SPEC.to_json())))
def test_a_spec_with_other_values(data: dict[str, Any]) -> None:
    try:
        assert isinstance(PairSpec.from_json(json.dumps(data)), PairSpec)
    except SpecError:
        return


def test_a_number_beyond_all_bounds() -> None:
    huge = json.loads(SPEC.to_json())
    huge["calibration"]["threshold"] = 10**400
    with pytest.raises(SpecError, match="threshold: a number beyond all bounds"):
        PairSpec.from_json(json.dumps(huge))
    site = {**json.loads(SITE.to_json()), "blocks": 10**400}
    with pytest.raises(SpecError, match="blocks: a number beyond all bounds"):
        SiteCalibration.from_json(json.dumps(site))


@pytest.mark.parametrize(
    "text",
    [DEEP, "", "null", "9" * 5000, '{"version": [1]}'],
    ids=["deep", "empty", "null", "a long number", "no version"],
)
def test_a_spec_that_is_none(text: str) -> None:
    with pytest.raises(SpecError):
        PairSpec.from_json(text)


MANIFEST: dict[str, Any] = {
    "backend": "tensorrt",
    "files": {FUSION_FILE: {"sha256": "ab" * 32}},
    "engine": FACTS.to_dict(),
}


@quickly
@given(damaged(json.loads(json.dumps(MANIFEST))))
def test_a_manifest_with_other_values(data: dict[str, Any]) -> None:
    """Whatever it says, bytes of another hash are never taken for the file."""
    try:
        facts = engine_facts(data)
        assert facts is None or dataclasses.is_dataclass(facts)
    except ModelError:
        pass
    if isinstance(data.get("files"), dict):  # read_manifest() refuses the others
        with pytest.raises(ModelError):
            check_bytes(Path("folder") / FUSION_FILE, b"a replaced file", data)


@quickly
@given(VALUES)
def test_engine_facts_out_of_anything(data: Any) -> None:
    with pytest.raises(ModelError):
        EngineFacts.from_dict(data)


@pytest.mark.parametrize(
    "content",
    [DEEP.encode(), b"\xff\xfe", b"", b"9" * 5000, b"null"],
    ids=["deep", "no text", "empty", "a long number", "null"],
)
def test_a_manifest_that_is_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


@quickly
@given(st.binary(max_size=200))
def test_an_onnx_file_of_any_bytes(data: bytes) -> None:
    with pytest.raises(WireError):
        read_onnx(data)


FUSION = (MODEL / FUSION_FILE).read_bytes()


@quickly
@given(
    st.lists(st.tuples(st.integers(0, len(FUSION) - 1), st.integers(1, 255)), max_size=4),
    st.integers(0, len(FUSION)),
)
@example([], len(FUSION))
def test_a_real_graph_with_other_bytes_or_cut_off(
    changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(FUSION)
    for at, change in changes:
        data[at] ^= change
    try:
        assert isinstance(read_onnx(bytes(data[:size])), OnnxFile)
    except WireError:
        assert changes or size < len(FUSION)


@pytest.mark.parametrize("at", [0, 1000, len(FUSION) // 2, len(FUSION) - 1])
def test_a_shipped_model_with_one_other_bit_is_refused(at: int, tmp_path: Path) -> None:
    for file in MODEL.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    read_pair(tmp_path)  # as it is shipped
    data = bytearray(FUSION)
    data[at] ^= 1
    (tmp_path / FUSION_FILE).write_bytes(data)
    with pytest.raises(ModelError):
        read_pair(tmp_path)


# --- a list of sources ----------------------------------------------------------------------

LINES = st.text(st.characters(exclude_characters="/."), max_size=30) | st.sampled_from(
    [
        *(
            "rtsp://",
            "rtsp://[",
            "http://a:b:c",
            "csi://x",
            "rtsp://a:99999/",
            "file:///etc/passwd",
        ),
        *("[", "**", "[!", "\0.mp4", "x" * 5000, "x" * 300 + "/y", "~root", "-", "camera", "0"),
    ]
)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be looked up"):
        expand_sources(["x" * 5000])
    with pytest.raises(MediaError, match="cannot be looked up"):
        FileSource(tmp_path / ("x" * 5000))


def test_a_name_with_a_nul_is_no_name() -> None:
    for source in ("*\0", "clips\0/*.mp4", "a\0b"):
        with pytest.raises(UsageError, match="NUL"):
            expand_sources([source])


@quickly
@given(st.lists(LINES, max_size=4))
def test_a_list_of_any_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("lists") / f"all{LIST_SUFFIX}"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with suppress(UsageError):
        assert all(isinstance(source, str) for source in expand_sources([str(path)]))


@quickly
@given(st.binary(max_size=60))
def test_a_list_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("lists") / f"all{LIST_SUFFIX}"
    path.write_bytes(content.translate(None, b"/."))
    with suppress(UsageError):
        expand_sources([str(path)])


# --- what is said of them -------------------------------------------------------------------


def test_an_error_is_one_line_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The names in it may be somebody else's: they neither break the line nor steer a terminal."""

    def command() -> int:
        raise UserError("unknown field \x1b]0;owned\x07\x9b31m a\nb\u2028c \u202etxt.exe ä")

    assert guarded(command) == UserError.exit_code
    said = capsys.readouterr().err
    assert said == "error: unknown field ?]0;owned??31m a b c ?txt.exe ä\n"
