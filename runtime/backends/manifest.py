# SPDX-License-Identifier: Apache-2.0
"""``manifest.json`` of a model folder: what its files are, and what an engine was built for.

The exporter writes it beside the pair; the backends read it before they open anything else.  An
engine is code for one GPU: it is loaded only from bytes whose SHA-256 stands in the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ModelError
from runtime.files import read_bounded

MAX_MODEL_BYTES = 1 << 30  # of a graph, an engine or a plugin library
MAX_MANIFEST_BYTES = 1 << 20
MANIFEST_FILE = "manifest.json"
ENGINE_FILES = ("frame_encoder.engine", "fusion.engine")
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}  # of Python
FLAVOURS = (TENSORRT, TENSORRT_RTX)  # also the manifest's "backend" of a folder with engines
PRECISIONS = ("fp32", "fp16")
REBUILD = "make the folder again with python -m export.build_engine"
_LIMITS = ("min", "opt", "max")

Profile = dict[str, dict[str, list[int]]]  # input -> {"min", "opt", "max"} -> shape


@dataclass(frozen=True)
class PluginFacts:
    """The plugin library that the engines need."""

    library: str  # file name, e.g. libmsct_plugins.so
    sha256: str
    layers: dict[str, int]  # graph (frame_encoder, fusion) -> PLUGIN_V3 layers in its engine


@dataclass(frozen=True)
class EngineFacts:
    """What a folder's engines were built with and for; ``engine`` in the manifest."""

    flavour: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of the library that built them
    compute_capabilities: tuple[str, ...]  # "8.6": the GPUs that they were built for
    platform: str  # "linux-x86_64", "linux-aarch64"
    precision: str  # "fp32" or "fp16"
    int8_encoder: bool  # frame encoder with explicit Q/DQ
    plugins: PluginFacts | None  # None: TensorRT's own layers only
    profiles: dict[str, Profile]  # graph -> input -> "min", "opt", "max" -> shape

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **dataclasses.asdict(self),
            "compute_capabilities": list(self.compute_capabilities),
        }

    @classmethod
    def from_dict(cls, data: Any) -> EngineFacts:
        """Raises :class:`ModelError` for what :meth:`to_dict` could not have written."""
        fields = _fields(cls, data, "engine")
        plugins = fields["plugins"]
        facts = cls(
            flavour=_one_of(fields, "flavour", FLAVOURS),
            version=_text(fields, "version"),
            compute_capabilities=_capabilities(fields["compute_capabilities"]),
            platform=_text(fields, "platform"),
            precision=_one_of(fields, "precision", PRECISIONS),
            int8_encoder=fields["int8_encoder"],
            plugins=None if plugins is None else _plugins(plugins),
            profiles=_profiles(fields["profiles"]),
        )
        if not isinstance(facts.int8_encoder, bool):
            raise _damage("engine.int8_encoder")
        return facts


def this_platform() -> str:
    """The machine's kind as :attr:`EngineFacts.platform` has it, e.g. ``linux-aarch64``."""
    return f"{sys.platform}-{platform.machine()}"


def has_engines(folder: Path) -> bool:
    """Does an engine file lie in this folder?"""
    return any((folder / name).is_file() for name in ENGINE_FILES)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``; raises :class:`ModelError` where it is missing or damaged."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(read_bounded(path, MAX_MANIFEST_BYTES).decode("utf-8-sig"))
    except OSError as err:
        raise ModelError(f"cannot read {path} ({err.strerror}); {REBUILD}") from err
    except (RecursionError, ValueError) as err:
        raise ModelError(f"{path} is damaged (no JSON); {REBUILD}") from err
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ModelError(f"{path} is damaged (it lists no files); {REBUILD}")
    return manifest


def engine_facts(manifest: Mapping[str, Any]) -> EngineFacts | None:
    """What the folder's engines are; None if it has none.  Raises :class:`ModelError` on damage."""
    data = manifest.get("engine")
    if data is None:
        if manifest.get("backend") in FLAVOURS:
            raise _damage("engine")
        return None
    facts = EngineFacts.from_dict(data)
    if manifest.get("backend") != facts.flavour:
        raise _damage("backend")
    return facts


def checked_bytes(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """The content of one file of the folder, whose SHA-256 is the manifest's.

    The bytes returned are the bytes that were hashed: the file may change afterwards.  Raises
    :class:`ModelError` for a file that is missing, unlisted or another one.
    """
    path = folder / name
    try:
        data = read_bounded(path, MAX_MODEL_BYTES)
    except OSError as err:
        raise ModelError(f"cannot read {path} ({err.strerror}); {REBUILD}") from err
    check_bytes(path, data, manifest)
    return data


def check_bytes(path: Path, data: bytes, manifest: Mapping[str, Any]) -> None:
    """Raise :class:`ModelError` unless ``data`` is what the manifest has for ``path``'s name."""
    try:
        expected = str(manifest["files"][path.name]["sha256"])
    except (KeyError, TypeError) as err:
        raise ModelError(
            f"{path.parent / MANIFEST_FILE} is damaged (no SHA-256 of {path.name}); {REBUILD}"
        ) from err
    if hashlib.sha256(data).hexdigest() != expected:
        raise ModelError(
            f"{path} is not the file that {MANIFEST_FILE} was written for (SHA-256 differs): it "
            f"was damaged or replaced; {REBUILD}"
        )


def _plugins(data: Any) -> PluginFacts:
    fields = _fields(PluginFacts, data, "engine.plugins")
    layers = fields["layers"]
    if not isinstance(layers, dict) or not all(_is_count(count) for count in layers.values()):
        raise _damage("engine.plugins.layers")
    where = "engine.plugins"
    library = _text(fields, "library", where)
    if Path(library).name != library:
        raise _damage(f"{where}.library")
    return PluginFacts(library, _text(fields, "sha256", where), dict(layers))


def _profiles(data: Any) -> dict[str, Profile]:
    """Every input has its three shapes, of one rank and in order."""
    try:
        found = {
            graph: {
                name: {limit: list(shapes[limit]) for limit in _LIMITS}
                for name, shapes in inputs.items()
            }
            for graph, inputs in data.items()
        }
    except (AttributeError, KeyError, TypeError) as err:
        raise _damage("engine.profiles") from err
    for inputs in found.values():
        for shapes in inputs.values():
            by_limit = [shapes[limit] for limit in _LIMITS]
            sizes = [size for shape in by_limit for size in shape]
            if len({len(shape) for shape in by_limit}) != 1 or not all(map(_is_count, sizes)):
                raise _damage("engine.profiles")
            if not all(a <= b <= c for a, b, c in zip(*by_limit, strict=True)):
                raise _damage("engine.profiles")
    return found


def _capabilities(data: Any) -> tuple[str, ...]:
    if isinstance(data, list) and data and all(isinstance(item, str) for item in data):
        return tuple(data)
    raise _damage("engine.compute_capabilities")


def _fields(kind: type, data: Any, where: str) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(data, dict) or set(data) != names:
        raise _damage(where)
    return data


def _text(fields: dict[str, Any], name: str, where: str = "engine") -> str:
    value = fields[name]
    if not isinstance(value, str) or not value:
        raise _damage(f"{where}.{name}")
    return value


def _one_of(fields: dict[str, Any], name: str, known: tuple[str, ...]) -> str:
    value = _text(fields, name)
    if value not in known:
        raise _damage(f"engine.{name}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damage(where: str) -> ModelError:
    return ModelError(
        f"{MANIFEST_FILE} is damaged or of another version of this project ({where}); {REBUILD}"
    )
