# SPDX-License-Identifier: Apache-2.0
"""The manifest: what it says of engines comes back as written, and damage is one clear line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz.targets import example_engines
from export.manifest import write_manifest
from runtime.backends.manifest import (
    ENGINE_FILES,
    MANIFEST_FILE,
    EngineFacts,
    checked_bytes,
    engine_facts,
    has_engines,
    read_manifest,
)
from runtime.errors import ModelError
from runtime.spec import PairSpec

FACTS = example_engines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ENGINE_FILES:
        (tmp_path / name).write_bytes(name.encode() * 10)
    facts = {"backend": "tensorrt", "engine": FACTS.to_dict()}
    write_manifest(tmp_path, ENGINE_FILES, PairSpec(pair_id="x"), facts)
    return tmp_path


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text
    assert "python -m export.build_engine" in text
    return text


class TestEngineFacts:
    def test_they_come_back_as_written(self, folder: Path) -> None:
        assert engine_facts(read_manifest(folder)) == FACTS

    def test_without_plugins(self) -> None:
        data = json.loads(json.dumps({**FACTS.to_dict(), "plugins": None}))
        assert EngineFacts.from_dict(data).plugins is None

    def test_a_pair_for_onnx_runtime_has_none(self, tmp_path: Path) -> None:
        write_manifest(tmp_path, (), PairSpec(), {"backend": "onnx"})
        assert engine_facts(read_manifest(tmp_path)) is None
        assert not has_engines(tmp_path)

    def test_an_engine_folder_must_have_them(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        del manifest["engine"]
        assert "(engine)" in refused(lambda: engine_facts(manifest))

    def test_they_are_the_manifests_own_flavour(self, folder: Path) -> None:
        manifest = {**read_manifest(folder), "backend": "tensorrt-rtx"}
        assert "(backend)" in refused(lambda: engine_facts(manifest))

    @pytest.mark.parametrize(
        ("path", "value", "named"),
        [
            (["flavour"], "openvino", "engine.flavour"),
            (["version"], "", "engine.version"),
            (["version"], 10, "engine.version"),
            (["compute_capabilities"], [], "engine.compute_capabilities"),
            (["compute_capabilities"], "8.7", "engine.compute_capabilities"),
            (["precision"], "int4", "engine.precision"),
            (["int8_encoder"], 1, "engine.int8_encoder"),
            (["surprise"], 1, "engine"),
            (["plugins"], {}, "engine.plugins"),
            (["plugins", "sha256"], "", "engine.plugins.sha256"),
            (["plugins", "library"], "../libmsct_plugins.so", "engine.plugins.library"),
            (["plugins", "layers"], {"fusion": -1}, "engine.plugins.layers"),
            (["profiles"], [], "engine.profiles"),
            (["profiles", "fusion", "audio", "max"], [4, 75], "engine.profiles"),
            (["profiles", "fusion", "audio", "max"], [4, 0, 104], "engine.profiles"),
            (["profiles", "fusion", "audio", "max"], [4, "75", 104], "engine.profiles"),
            (["profiles", "fusion", "audio"], {"min": [1, 1, 104]}, "engine.profiles"),
        ],
    )
    def test_damage_is_named(self, path: list[str], value: Any, named: str) -> None:
        data = copy.deepcopy(FACTS.to_dict())
        at = data
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        assert f"({named})" in refused(lambda: EngineFacts.from_dict(data))

    def test_a_missing_field_is_damage(self) -> None:
        data = FACTS.to_dict()
        del data["platform"]
        assert "(engine)" in refused(lambda: EngineFacts.from_dict(data))


class TestFiles:
    def test_the_bytes_that_were_hashed(self, folder: Path) -> None:
        data = checked_bytes(folder, ENGINE_FILES[0], read_manifest(folder))
        assert data == (folder / ENGINE_FILES[0]).read_bytes()

    def test_one_changed_bit(self, folder: Path) -> None:
        path = folder / ENGINE_FILES[1]
        data = bytearray(path.read_bytes())
        data[7] ^= 1
        path.write_bytes(data)
        text = refused(lambda: checked_bytes(folder, ENGINE_FILES[1], read_manifest(folder)))
        assert f"{path} is not the file" in text

    def test_a_missing_file(self, folder: Path) -> None:
        (folder / ENGINE_FILES[0]).unlink()
        text = refused(lambda: checked_bytes(folder, ENGINE_FILES[0], read_manifest(folder)))
        assert "cannot read" in text

    @pytest.mark.parametrize("entry", [None, "x", {}], ids=["no entry", "a text", "no hash"])
    def test_a_file_without_a_hash_is_never_read(self, folder: Path, entry: Any) -> None:
        manifest = read_manifest(folder)
        manifest["files"][ENGINE_FILES[0]] = entry
        text = refused(lambda: checked_bytes(folder, ENGINE_FILES[0], manifest))
        assert "no SHA-256 of frame_encoder.engine" in text

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": []}'])
    def test_a_damaged_manifest(self, folder: Path, content: str) -> None:
        (folder / MANIFEST_FILE).write_text(content)
        assert "manifest.json is damaged" in refused(lambda: read_manifest(folder))

    def test_no_manifest(self, tmp_path: Path) -> None:
        assert "cannot read" in refused(lambda: read_manifest(tmp_path))
