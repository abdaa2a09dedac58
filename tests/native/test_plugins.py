# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin library: what it shows, what it takes, what it says when it refuses.

Without a GPU: plugins/driver.cpp calls it as TensorRT would, and TensorRT-RTX builds engines with
it ahead of time.  Each session with TensorRT is a process of its own (plugins/session.py).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.native import cmake

HERE = Path(__file__).resolve().parent / "plugins"
KEY_CONV, ATTENTION = "MultiScaleKeyConv", "DifferentialCrossAttention"
KERNEL_SIZES = [1, 3, 5, 7]
SCALE = struct.unpack("<f", struct.pack("<f", 32**-0.5))[0]
FLAVOURS = ("tensorrt", "tensorrt_rtx")  # Python packages; both may be installed
PARSES_PLUGINS = (1, 7)  # TensorRT-RTX's ONNX parser; 1.4 to 1.6 know only their own operators
TARGET = "SM86"  # what TensorRT-RTX builds for where no GPU is present


def gpu_is_present() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


# ---- without any TensorRT ------------------------------------------------------------------------


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.thorough
class TestLibrary:
    def test_it_shows_two_c_symbols_and_nothing_else(self, plugin_library_path):
        if not shutil.which("nm"):
            pytest.skip("nm is not installed")
        listed = output_of("nm", "--dynamic", "--defined-only", str(plugin_library_path))
        shown = sorted(line.split()[-1].split("@")[0] for line in listed.splitlines())
        assert shown == ["getCreators", "setLoggerFinder"]

    def test_it_needs_no_library_of_tensorrt_nor_of_cuda(self, plugin_library_path):
        if not shutil.which("readelf"):
            pytest.skip("readelf is not installed")
        listed = output_of("readelf", "--dynamic", "--wide", str(plugin_library_path))
        needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", listed))
        assert needed, listed
        system = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|ld-linux")
        assert not {name for name in needed if not system.match(name)}
        assert "RPATH" not in listed
        assert "RUNPATH" not in listed

    def test_driven_as_tensorrt_would_drive_it(self, plugin_library_path, tmp_path):
        """Fields, formats, shapes, clones, serialisation, messages; hundreds of named checks."""
        build = plugin_library_path.parent
        driver = compiled(build, tmp_path, HERE / "driver.cpp", "-Xlinker=--export-dynamic")
        arguments = [] if gpu_is_present() else ["no-gpu"]
        passed, stderr = results([str(driver), str(plugin_library_path), *arguments])
        assert passed > 400
        assert stderr.splitlines()[-1] == (  # the last refusal has no logger
            f"msct::{ATTENTION}: field 'scale' is missing; it is one float32"
        )

    def test_what_enqueue_hands_to_the_kernels(self, plugin_library_path, tmp_path):
        """Pointers in order, B, h, T, D, dense strides, types, the fields' values, the stream."""
        csrc = cmake.ROOT / "csrc"
        sources = [str(path) for path in sorted((csrc / "plugins").glob("*.cpp"))]
        build = plugin_library_path.parent
        program = compiled(build, tmp_path, HERE / "parameters.cpp", *sources, f"-I{csrc}")
        passed, _ = results([str(program)])
        assert passed == 37


def compiled(build: Path, folder: Path, source: Path, *arguments: str) -> Path:
    """A program of plugins/, with the headers that the library was built with.

    As C++20, which some TensorRT headers need; CMake compiles the library as C++17 where it can.
    """
    nvcc = cmake.nvcc()  # as the C++ compiler that finds CUDA's headers
    assert nvcc is not None
    program = folder / source.stem
    command = [nvcc, "-std=c++20", "--cudart=none", "-Xcompiler=-Wall,-Wextra,-Werror", "-ldl"]
    command += ["-isystem", tensorrt_headers(build), str(source), *arguments]
    made = subprocess.run(
        [*command, "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return program


def results(command: list[str]) -> tuple[int, str]:
    """How many checks passed, and what went to standard error; fails if one did not pass."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("PASS ")] == []
    assert done.returncode == 0, done.stderr
    return len(lines), done.stderr


def tensorrt_headers(build: Path) -> str:
    """Where the build found them."""
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
    found = re.search(r"^MSCT_TENSORRT_INCLUDE:\w+=(.+)$", cache, re.MULTILINE)
    assert found, "the build's cache does not say where TensorRT's headers are"
    return found[1]


# ---- with TensorRT -------------------------------------------------------------------------------


class Session:
    """Sends requests to sessions of one flavour, each in a new process."""

    def __init__(self, flavour: str, library: Path, folder: Path) -> None:
        self.flavour, self.library, self.folder = flavour, library, folder
        paths = [str(cmake.ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.version = str(self("registry")["version"])

    def __call__(self, action: str, **request: Any) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, str(HERE / "session.py"), self.flavour, str(self.library)],
            input=json.dumps({"action": action, **request}),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"the session ended with {done.returncode}:\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    def build(self, **request: Any) -> dict[str, Any]:
        if self.flavour == "tensorrt_rtx" and self.numbers < PARSES_PLUGINS:
            pytest.skip(f"TensorRT-RTX {self.version} takes no plugin from ONNX; 1.7 does")
        engine = self.folder / "built.engine"
        engine.unlink(missing_ok=True)
        if not gpu_is_present():
            if self.flavour == "tensorrt":
                pytest.skip("TensorRT builds engines only where a GPU is; TensorRT-RTX is checked")
            request["target"] = TARGET
        answer = self("build", engine=str(engine), **request)
        assert bool(answer.get("bytes")) == engine.exists()
        return answer

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split(".")[:2])

    def engine(self) -> bytes:
        return (self.folder / "built.engine").read_bytes()


INSTALLED = [name for name in FLAVOURS if importlib.util.find_spec(name)]


@pytest.fixture(scope="module", params=INSTALLED or ["none"])
def session(request, plugin_library_path, tmp_path_factory) -> Session:
    if not INSTALLED:
        pytest.skip("neither tensorrt nor tensorrt-rtx is installed")
    return Session(request.param, plugin_library_path, tmp_path_factory.mktemp(request.param))


def plugin_lines(answer: dict[str, Any]) -> list[str]:
    return [text for text in answer["errors"] if text.startswith("msct::")]


class Graphs:
    """ONNX graphs of one custom op, or of both in a row, as the parser is to see them."""

    def __init__(self, folder: Path, onnx: Any) -> None:
        self.folder, self.onnx = folder, onnx

    def tensor(self, name: str, kind: str, shape: list[int]) -> Any:
        """A constant of zeros."""
        size = 1
        for extent in shape:
            size *= extent
        zeros = bytes(size * (4 if kind == "FLOAT" else 2))
        data_type = self.onnx.TensorProto.DataType.Value(kind)
        return self.onnx.helper.make_tensor(name, data_type, shape, zeros, raw=True)

    def value(self, name: str, kind: str, shape: list[int | str]) -> Any:
        data_type = self.onnx.TensorProto.DataType.Value(kind)
        return self.onnx.helper.make_tensor_value_info(name, data_type, shape)

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return self.onnx.helper.make_node(
            op,
            inputs,
            [output],
            name=output,
            domain="msct",
            plugin_version="1",
            plugin_namespace="msct",
            **attributes,
        )

    def save(self, nodes: list[Any], inputs: list[Any], output: Any, constants: list[Any]) -> str:
        helper = self.onnx.helper
        graph = helper.make_graph(nodes, "graph", inputs, [output], constants)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("msct", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        path = self.folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return str(path)

    def conv(
        self,
        kind: str = "FLOAT16",
        shape: tuple[int | str, ...] = ("B", 4, "T", 32),
        sizes: list[int] = KERNEL_SIZES,
        weight_sizes: list[int] | None = None,
        **attributes: Any,
    ) -> str:
        key = self.value("K", kind, list(shape))
        out = self.value("Y", kind, list(shape))
        names, constants = self.weights(kind, int(shape[1]) // 4, weight_sizes or sizes)
        attributes = {"kernel_sizes": sizes, "prefix_tokens": 1, **attributes}
        given = {name: value for name, value in attributes.items() if value is not None}
        node = self.node(KEY_CONV, ["K", *names], "Y", **given)
        return self.save([node], [key], out, constants)

    def attention(
        self,
        kind: str = "FLOAT16",
        shape: tuple[int | str, ...] = ("B", 4, "T", 32),
        lam: tuple[str, int] | None = None,
        key: tuple[str, tuple[int | str, ...]] | None = None,
        **attributes: Any,
    ) -> str:
        inputs = [self.value(name, kind, list(shape)) for name in ("Q", "C", "K", "V")]
        if key is not None:
            inputs[2] = self.value("K", key[0], list(key[1]))
        lam_kind, heads = lam or ("FLOAT", int(shape[1]))
        inputs.append(self.value("lam", lam_kind, [heads]))
        attributes = {"scale": SCALE, **attributes}
        given = {name: value for name, value in attributes.items() if value is not None}
        node = self.node(ATTENTION, ["Q", "C", "K", "V", "lam"], "Y", **given)
        return self.save([node], inputs, self.value("Y", kind, list(shape)), [])

    def both(self, kind: str, heads: int, dim: int) -> str:
        shape: list[int | str] = ["B", heads, "T", dim]
        inputs = [self.value(name, kind, shape) for name in ("Q", "C", "K", "V")]
        names, constants = self.weights(kind, heads // 4, KERNEL_SIZES)
        constants.append(self.tensor("lam", "FLOAT", [heads]))
        nodes = [
            self.node(KEY_CONV, ["K", *names], "keys", kernel_sizes=KERNEL_SIZES, prefix_tokens=1),
            self.node(ATTENTION, ["Q", "C", "keys", "V", "lam"], "Y", scale=SCALE),
        ]
        return self.save(nodes, inputs, self.value("Y", kind, shape), constants)

    def weights(self, kind: str, group: int, sizes: list[int]) -> tuple[list[str], list[Any]]:
        constants = [self.tensor(f"W{g}", kind, [group, group, k, k]) for g, k in enumerate(sizes)]
        constants += [self.tensor(f"b{g}", kind, [group]) for g in range(len(sizes))]
        return [tensor.name for tensor in constants], constants


@pytest.fixture
def graphs(tmp_path) -> Graphs:
    onnx = pytest.importorskip("onnx", reason="onnx is needed to write the graphs")
    return Graphs(tmp_path, onnx)


def profile(heads: int = 4, dim: int = 32, tokens: int = 150, batch: int = 16) -> list[list[int]]:
    return [[1, heads, 1, dim], [1, heads, 51, dim], [batch, heads, tokens, dim]]


@pytest.mark.tensorrt
class TestRegistry:
    def test_both_creators_are_found_with_their_fields(self, session):
        found = session("registry")
        assert found["loaded"]
        assert sorted(found["creators"]) == [[ATTENTION, "1"], [KEY_CONV, "1"]]
        assert found["kinds"] == ["PLUGIN CREATOR_V3ONE"] * 2
        assert found["fields"] == {
            KEY_CONV: [["kernel_sizes", "INT32", 4], ["prefix_tokens", "INT32", 1]],
            ATTENTION: [["scale", "FLOAT32", 1]],
        }

    def test_a_second_load_gives_nothing_and_changes_nothing(self, session):
        found = session("registry")
        assert found["loaded"]
        assert not found["loaded again"]
        assert len(found["creators"]) == 2

    @pytest.mark.parametrize(
        ("op", "fields", "message"),
        [
            (ATTENTION, [], "field 'scale' is missing; it is one float32"),
            (ATTENTION, [["scale", "INT32", [1]]], "field 'scale' is int32, not one float32"),
            (
                ATTENTION,
                [["scale", "FLOAT32", [0.5]], ["window", "INT32", [9]]],
                "field 'window' is unknown; its fields are scale",
            ),
            (ATTENTION, [["scale", "FLOAT32", [float("inf")]]], "scale=inf; scale must be finite"),
            (
                KEY_CONV,
                [["kernel_sizes", "INT32", [1, 3, 5]], ["prefix_tokens", "INT32", [1]]],
                "field 'kernel_sizes' has 3 values, not four integers",
            ),
            (
                KEY_CONV,
                [["kernel_sizes", "INT32", [1, 3, 4, 7]], ["prefix_tokens", "INT32", [1]]],
                "kernel_sizes=[1, 3, 4, 7] prefix_tokens=1; kernel sizes must be odd",
            ),
            (
                KEY_CONV,
                [["kernel_sizes", "INT32", KERNEL_SIZES], ["prefix_tokens", "INT32", [-1]]],
                "kernel_sizes=[1, 3, 5, 7] prefix_tokens=-1; prefix_tokens must be from 0",
            ),
        ],
    )
    def test_bad_fields_are_refused_in_the_log(self, session, op, fields, message):
        answer = session("create", op=op, fields=fields)
        assert not answer["created"]
        (line,) = plugin_lines(answer)
        assert line.startswith(f"msct::{op}: {message}")

    def test_good_fields_are_taken_as_int32_and_as_int64(self, session):
        for kind in ("INT32", "INT64"):
            fields = [["kernel_sizes", kind, KERNEL_SIZES], ["prefix_tokens", kind, [1]]]
            answer = session("create", op=KEY_CONV, fields=fields)
            assert answer["created"], answer
            assert plugin_lines(answer) == []


@pytest.mark.tensorrt
class TestEngines:
    @pytest.mark.parametrize(("heads", "dim"), [(4, 32), (8, 64)])
    @pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16"])
    def test_onnx_nodes_become_plugin_layers(self, session, graphs, kind, heads, dim):
        answer = session.build(
            model=graphs.both(kind, heads, dim), profile=profile(heads=heads, dim=dim)
        )
        assert answer["parser"] == []
        assert [layer for layer in answer["layers"] if layer == "PLUGIN_V3"] == ["PLUGIN_V3"] * 2
        expected = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "BFLOAT16": "BF16"}[kind]
        assert answer["output"] == [expected, [-1, heads, -1, dim]]
        assert answer["errors"] == []
        assert answer["bytes"] > 0

    def test_the_engine_holds_names_and_fields(self, session, graphs):
        """What is serialised is what the runtime phase gets; reading it back needs a GPU."""
        answer = session.build(model=graphs.both("FLOAT16", 4, 32), profile=profile())
        assert answer["bytes"] > 0, answer
        engine = session.engine()
        for name in (KEY_CONV, ATTENTION, "kernel_sizes", "prefix_tokens", "scale", "msct"):
            assert name.encode() in engine
        assert struct.pack("<4i", *KERNEL_SIZES) in engine
        assert struct.pack("<f", SCALE) in engine

    @pytest.mark.parametrize("kind", ["FLOAT", "HALF", "BF16"])
    def test_a_layer_added_without_a_parser(self, session, kind):
        if session.flavour == "tensorrt_rtx":
            pytest.skip("TensorRT-RTX's Python interface has no add_plugin_v3")
        inputs = [[name, kind, [-1, 4, -1, 32]] for name in ("q", "c", "k", "v")]
        answer = session.build(
            op=ATTENTION,
            fields=[["scale", "FLOAT32", [SCALE]]],
            inputs=[*inputs, ["lam", "FLOAT", [4]]],
            profile=profile(),
        )
        assert answer["layers"] == ["PLUGIN_V3"]
        assert answer["errors"] == []
        assert answer["bytes"] > 0


@pytest.mark.tensorrt
class TestBadInput:
    """Each is refused by the plugin, in one readable line of the caller's log."""

    def refused(self, session: Session, model: str, bounds: list[list[int]] | None = None) -> str:
        answer = session.build(model=model, profile=bounds or profile())
        assert not answer.get("bytes")
        lines = plugin_lines(answer)
        assert len(lines) == 1, answer
        assert "\n" not in lines[0]
        return lines[0]

    def test_a_key_of_rank_three(self, session, graphs):
        model = graphs.attention(shape=(1, 4, 51, 32), key=("FLOAT16", (4, 51, 32)))
        assert self.refused(session, model) == (
            f"msct::{ATTENTION}: K has rank 3; it must be [B, h, T, D]"
        )

    def test_a_key_of_another_length(self, session, graphs):
        model = graphs.attention(shape=(1, 4, 51, 32), key=("FLOAT16", (1, 4, 50, 32)))
        assert self.refused(session, model) == (
            f"msct::{ATTENTION}: K is [1, 4, 50, 32]; with Q_self it must be [1, 4, 51, 32]"
        )

    def test_a_key_of_another_type(self, session, graphs):
        model = graphs.attention(key=("FLOAT", ("B", 4, "T", 32)))
        assert self.refused(session, model) == (
            f"msct::{ATTENTION}: K is float32 and Q_self is float16; they must have one type"
        )

    def test_lam_in_half_precision(self, session, graphs):
        model = graphs.attention(lam=("FLOAT16", 4))
        assert self.refused(session, model) == (
            f"msct::{ATTENTION}: lam is float16; it must be float32 always"
        )

    def test_lam_of_another_number_of_heads(self, session, graphs):
        line = self.refused(session, graphs.attention(lam=("FLOAT", 8)))
        assert line == f"msct::{ATTENTION}: lam is [8]; with Q_self it must be [4]"

    def test_integers(self, session, graphs):
        line = self.refused(session, graphs.attention(kind="INT32"))
        assert line == (
            f"msct::{ATTENTION}: Q_self is int32; it must be float32, float16 or bfloat16"
        )

    @pytest.mark.parametrize("op", [KEY_CONV, ATTENTION])
    def test_a_dimension_of_20(self, session, graphs, op):
        write = graphs.conv if op == KEY_CONV else graphs.attention
        line = self.refused(session, write(shape=("B", 4, "T", 20)), profile(dim=20))
        assert line.startswith(f"msct::{op}: ")
        assert "[1, 4, 1, 20]; the head dimension must be a multiple of 8, at most 128" in line

    @pytest.mark.parametrize("op", [KEY_CONV, ATTENTION])
    def test_a_profile_up_to_600_tokens(self, session, graphs, op):
        write = graphs.conv if op == KEY_CONV else graphs.attention
        line = self.refused(session, write(), profile(tokens=600))
        assert line.startswith(f"msct::{op}: ")
        assert line.endswith("[16, 4, 600, 32]; tokens must be from 1 to 512")

    def test_a_fixed_shape_of_600_tokens(self, session, graphs):
        line = self.refused(session, graphs.attention(shape=(1, 4, 600, 32)))
        assert line.endswith("Q_self is [1, 4, 600, 32]; tokens must be from 1 to 512")

    def test_six_heads(self, session, graphs):
        line = self.refused(session, graphs.conv(shape=("B", 6, "T", 32)), profile(heads=6))
        assert line == f"msct::{KEY_CONV}: K is [1, 6, 1, 32]; heads must be a multiple of 4"

    def test_weights_of_another_kernel_size(self, session, graphs):
        line = self.refused(session, graphs.conv(weight_sizes=[1, 3, 3, 7]))
        assert line == (
            f"msct::{KEY_CONV}: W2 is [1, 1, 3, 3]; with K and kernel_sizes it must be [1, 1, 5, 5]"
        )

    @pytest.mark.parametrize("field", ["kernel_sizes", "prefix_tokens"])
    def test_a_missing_field_of_the_convolution(self, session, graphs, field):
        line = self.refused(session, graphs.conv(**{field: None}))
        assert line.startswith(f"msct::{KEY_CONV}: field '{field}' is missing; it is ")

    def test_a_missing_scale(self, session, graphs):
        line = self.refused(session, graphs.attention(scale=None))
        assert line == f"msct::{ATTENTION}: field 'scale' is missing; it is one float32"

    def test_a_scale_that_is_an_integer(self, session, graphs):
        line = self.refused(session, graphs.attention(scale=1))
        assert line == f"msct::{ATTENTION}: field 'scale' is int32, not one float32"
