# SPDX-License-Identifier: Apache-2.0
"""Models that are made to hurt: each is one clear line, in little memory and time."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="writing a pair for the test needs onnx (.[export])")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from runtime.backends import manifest, onnx_file  # noqa: E402
from runtime.backends import onnx as module  # noqa: E402
from runtime.backends.manifest import MANIFEST_FILE, read_manifest  # noqa: E402
from runtime.backends.onnx import OnnxBackend  # noqa: E402
from runtime.command import guarded  # noqa: E402
from runtime.errors import EXIT_ERROR, ModelError  # noqa: E402
from runtime.files import read_bounded  # noqa: E402
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE  # noqa: E402
from tests.export import synthetic  # noqa: E402
from tests.waiting import patient  # noqa: E402

MAX_GROWTH_MB = 400.0  # of what was resident; every model here asks for gigabytes
Change = Callable[[Any], None]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return synthetic.write_pair(tmp_path / "pair")


def edit(path: Path, change: Change) -> None:
    model = onnx.load_from_string(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())


def refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says of that model; its exit code, and its memory, are checked here."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def command() -> int:
        OnnxBackend(folder).close()
        return 0

    assert guarded(command) == EXIT_ERROR
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < MAX_GROWTH_MB
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def constant(name: str, array: np.ndarray[Any, Any]) -> Any:
    return numpy_helper.from_array(array, name)


def added_to(model: Any, name: str) -> None:
    """What is called ``name``, one number, becomes part of the first output."""
    (maker,) = (n for n in model.graph.node if model.graph.output[0].name in n.output)
    output = model.graph.output[0].name
    maker.output[list(maker.output).index(output)] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", name], [output]))


def nested(operator: str) -> Any:
    """A node with a graph of its own."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["in"], ["out"])],
        "inner",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
    )
    return helper.make_node(operator, ["a"], ["b"], body=inner)


class TestForm:
    """What is seen before a library opens the file."""

    @pytest.mark.parametrize("operator", ["Loop", "Scan", "If"])
    @pytest.mark.parametrize("where", ["graph", "function", "inner"])
    def test_loops_and_branches(
        self, operator: str, where: str, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def change(model: Any) -> None:
            node = nested(operator)
            if where == "graph":
                model.graph.node.append(node)
            elif where == "function":
                model.functions[0].node.append(node)
            else:
                outer = helper.make_node("Identity", ["a"], ["c"])
                outer.attribute.append(
                    helper.make_attribute("g", helper.make_graph([node], "outer", [], []))
                )
                model.graph.node.append(outer)

        edit(pair / FUSION_FILE, change)
        assert f"has loops or branches ({operator}" in refused(pair, capfd)

    def test_functions_that_call_functions(
        self, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Forty that call the next one twice each stand for a billion nodes."""

        def change(model: Any) -> None:
            for i in range(40):
                body = [helper.make_node(f"F{i + 1}", ["x"], ["t"], domain="msct"),
                        helper.make_node(f"F{i + 1}", ["t"], ["y"], domain="msct")]  # fmt: skip
                model.functions.append(
                    helper.make_function("msct", f"F{i}", ["x"], ["y"], body,
                                         [helper.make_opsetid("msct", 1)])
                )  # fmt: skip

        edit(pair / FUSION_FILE, change)
        assert "functions that call functions" in refused(pair, capfd)

    def test_a_function_in_place_of_an_operator(
        self, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def change(model: Any) -> None:
            body = [helper.make_node("Mul", ["a", "b"], ["y"])]
            model.functions.append(
                helper.make_function("", "Add", ["a", "b"], ["y"], body,
                                     [helper.make_opsetid("", 18)])
            )  # fmt: skip

        edit(pair / FUSION_FILE, change)
        assert "replace operators" in refused(pair, capfd)

    def test_operators_of_a_set_that_was_not_asked_for(
        self, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        edit(
            pair / FUSION_FILE,
            lambda model: model.graph.node.append(
                helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft")
            ),
        )
        assert "foreign operators (com.microsoft)" in refused(pair, capfd)

    def test_a_sparse_tensor(self, pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """Two numbers that stand for four terabytes."""

        def change(model: Any) -> None:
            values = constant("s", np.ones(1, np.float32))
            indices = constant("i", np.zeros(1, np.int64))
            model.graph.sparse_initializer.append(
                helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20])
            )

        edit(pair / FUSION_FILE, change)
        assert "has sparse tensors" in refused(pair, capfd)

    @pytest.mark.parametrize("dims", [[1 << 62], [1 << 40, 1 << 40], [1 << 28]])
    def test_a_tensor_that_claims_more_than_is_there(
        self, dims: list[int], pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def change(model: Any) -> None:
            model.graph.initializer.append(
                TensorProto(name="c", data_type=TensorProto.FLOAT, dims=dims)
            )

        edit(pair / FUSION_FILE, change)
        assert "more values than the file could hold" in refused(pair, capfd)

    def test_graphs_in_graphs_without_end(
        self, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def message(field: int, body: bytes) -> bytes:
            size, out = len(body), bytearray([field << 3 | 2])
            while size > 0x7F:
                out.append(size & 0x7F | 0x80)
                size >>= 7
            return bytes([*out, size]) + body

        body = b""
        for _ in range(3000):
            body = message(1, message(5, message(6, body)))  # node, attribute, graph
        path = pair / FUSION_FILE
        path.write_bytes(path.read_bytes() + message(7, body))
        assert "nested too deeply" in refused(pair, capfd)

    def test_more_parts_than_any_model(
        self,
        pair: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(onnx_file, "MAX_FIELDS", 20_000)
        path = pair / FUSION_FILE
        path.write_bytes(path.read_bytes() + b"\x08\x01" * 20_000)  # ir_version, again and again
        assert "more parts than any model" in refused(pair, capfd)


class TestFiles:
    @pytest.mark.parametrize("name", [FRAME_ENCODER_FILE, FUSION_FILE, MANIFEST_FILE])
    def test_a_sparse_file_larger_than_any_disk(
        self, name: str, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with (pair / name).open("ab") as file:
            file.truncate(200 << 30)
        start = time.monotonic()
        assert "larger than" in refused(pair, capfd)
        assert time.monotonic() - start < patient(10)

    @pytest.mark.parametrize("name", [FUSION_FILE, MANIFEST_FILE])
    def test_a_pipe_is_not_waited_for(
        self, name: str, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (pair / name).unlink(missing_ok=True)
        os.mkfifo(pair / name)
        if name == MANIFEST_FILE:  # is none, so nobody looks into it
            OnnxBackend(pair).close()
        with pytest.raises(ModelError, match="no regular file"):
            read_manifest(pair) if name == MANIFEST_FILE else OnnxBackend(pair)

    def test_an_engine_and_a_device_that_never_ends(self, tmp_path: Path) -> None:
        with (tmp_path / "fusion.engine").open("wb") as file:
            file.truncate(200 << 30)
        with pytest.raises(ModelError, match="larger than"):
            manifest.checked_bytes(tmp_path, "fusion.engine", {})
        (tmp_path / "zero").symlink_to("/dev/zero")
        with pytest.raises(OSError, match="no regular file"):
            read_bounded(tmp_path / "zero", 100)

    def test_what_grows_while_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 100)
        assert read_bounded(path, 100) == b"x" * 100
        with pytest.raises(OSError, match="larger than"):
            read_bounded(path, 99)


class TestWork:
    """Small files whose operators would make enormous tensors, or never end."""

    @pytest.mark.parametrize("when", ["opened", "run"])
    def test_an_outer_product_of_gigabytes(
        self, when: str, pair: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Constant, it would be computed while the graph is opened."""

        def change(model: Any) -> None:
            model.graph.initializer.extend(
                [constant("column", np.ones((60_000, 1), np.float32)),
                 constant("row", np.ones((1, 60_000), np.float32))]
            )  # fmt: skip
            column = "column"
            if when == "run":
                model.graph.node.extend(
                    [helper.make_node("ReduceMax", ["audio"], ["peak"], keepdims=0),
                     helper.make_node("Add", ["column", "peak"], ["moving"])]
                )  # fmt: skip
                column = "moving"
            model.graph.node.extend(
                [helper.make_node("MatMul", [column, "row"], ["product"]),
                 helper.make_node("ReduceMax", ["product"], ["most"], keepdims=0)]
            )  # fmt: skip
            added_to(model, "most")

        edit(pair / FUSION_FILE, change)
        assert "ONNX Runtime" in refused(pair, capfd)

    def test_a_constant_of_terabytes(self, pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
        def change(model: Any) -> None:
            model.graph.initializer.append(constant("shape", np.array([1 << 40], np.int64)))
            model.graph.node.extend(
                [helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
                 helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0)]
            )  # fmt: skip
            added_to(model, "most")

        edit(pair / FUSION_FILE, change)
        assert "ONNX Runtime" in refused(pair, capfd)

    @pytest.mark.thorough
    @pytest.mark.parametrize("when", ["opened", "run"])
    def test_work_without_end(
        self,
        when: str,
        pair: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A thousand products of 2 * 10^9 operations each, ended after half a second; constant ones
        would be computed while the graph is opened."""
        monkeypatch.setattr(module, "TRY_S", 0.5)

        def change(model: Any) -> None:
            model.graph.initializer.append(constant("m", np.eye(1000, dtype=np.float32)))
            last = "m"
            if when == "run":
                model.graph.node.extend(
                    [helper.make_node("ReduceMax", ["audio"], ["peak"], keepdims=0),
                     helper.make_node("Add", ["m", "peak"], ["moving"])]
                )  # fmt: skip
                last = "moving"
            for i in range(1000):
                model.graph.node.append(helper.make_node("MatMul", [last, "m"], [f"m{i}"]))
                last = f"m{i}"
            model.graph.node.append(helper.make_node("ReduceMax", [last], ["most"], keepdims=0))
            added_to(model, "most")

        edit(pair / FUSION_FILE, change)
        start = time.monotonic()
        said = refused(pair, capfd)
        assert time.monotonic() - start < patient(30)
        assert "terminate" in said
