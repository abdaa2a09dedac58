# SPDX-License-Identifier: Apache-2.0
"""The process that builds engines: profiles, errors in one line, the timing cache, interruption."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export import builder
from export.builder import Built, Graph, Request
from export.choice import Target
from runtime.errors import ModelError, UserError
from runtime.spec import PairSpec
from tests.export import children
from tests.export.fake_tensorrt import FakeTensorRT

HERE = Target(("8.7",), here=True)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Both graphs for TensorRT on the GPU that is here."""
    graphs = []
    for name in ("frame_encoder", "fusion"):
        (tmp_path / f"{name}.onnx").write_bytes(b"graph")
        profile = {"x": {"min": [1], "opt": [2], "max": [3]}}
        onnx, engine = tmp_path / f"{name}.onnx", tmp_path / f"{name}.engine"
        graphs.append(Graph(name, onnx, engine, profile, {}))
    return Request("tensorrt", tuple(graphs), HERE, timing_cache=tmp_path / "cache" / "timings")


def build(trt: FakeTensorRT, request: Request) -> Built:
    return builder.build_here(trt, request, lambda what: None)


class TestProfiles:
    def test_every_input_has_a_smallest_a_usual_and_a_largest_shape(self) -> None:
        found = builder.profiles(PairSpec(), window_tokens=50, max_batch=4)
        assert found["frame_encoder"]["frames"] == {
            "min": [1, 64, 64, 3],
            "opt": [5, 64, 64, 3],
            "max": [50, 64, 64, 3],
        }
        assert found["fusion"]["visual"] == {
            "min": [1, 1, 128],
            "opt": [1, 50, 128],
            "max": [4, 511, 128],
        }
        assert found["fusion"]["audio"]["max"] == [4, 511, 104]

    def test_the_longest_window_leaves_room_for_the_class_token(self) -> None:
        assert builder.MAX_WINDOW_TOKENS + 1 == 512  # what the kernels take

    @pytest.mark.parametrize(("window", "batch", "frames"), [(100, 4, 100), (50, 16, 80)])
    def test_a_window_and_the_hop_of_all_faces_fit_into_one_call(
        self, window: int, batch: int, frames: int
    ) -> None:
        found = builder.profiles(PairSpec(), window_tokens=window, max_batch=batch)
        assert found["frame_encoder"]["frames"]["max"][0] == frames
        assert found["fusion"]["visual"]["opt"][1] == window
        assert found["fusion"]["visual"]["max"][0] == batch


class TestWithAFakeTensorRT:
    def test_engines_are_written_and_counted(self, request_: Request) -> None:
        built = build(FakeTensorRT(), request_)
        assert [graph.engine.read_bytes() for graph in request_.graphs] == [b"engine"] * 2
        assert built.version == "10.13.0.35"
        assert built.layers == {"frame_encoder": 0, "fusion": 0}
        assert set(built.seconds) == {"frame_encoder", "fusion"}

    def test_networks_are_strongly_typed_and_fp32_is_fp32(self, request_: Request) -> None:
        trt = FakeTensorRT()
        build(trt, request_)
        assert trt.network_flags == [0b10, 0b10]
        assert trt.cleared == [trt.BuilderFlag.TF32] * 2
        assert trt.shapes == {"x": ([1], [2], [3])}
        assert trt.workspace == 1 << 30

    def test_a_library_without_the_flag_needs_none(self, request_: Request) -> None:
        trt = FakeTensorRT()
        trt.NetworkDefinitionCreationFlag = object()  # type: ignore[assignment, misc]
        build(trt, request_)
        assert trt.network_flags == [0, 0]

    def test_progress_tells_the_outermost_phase(self, request_: Request) -> None:
        steps: list[str] = []
        builder.build_here(FakeTensorRT(), request_, steps.append)
        name = "build frame_encoder.engine"
        assert steps[:3] == [name, f"{name}: Building, 1 of 2", "build fusion.engine"]

    @pytest.mark.parametrize("layers", [1, 3])
    def test_another_number_of_plugin_layers_than_nodes_is_refused(
        self, request_: Request, layers: int
    ) -> None:
        fusion = request_.graphs[1]
        graph = Graph("fusion", fusion.onnx, fusion.engine, fusion.profile, {"A": 1, "B": 1})
        request = Request("tensorrt", (graph,), HERE, timing_cache=request_.timing_cache)
        with pytest.raises(ModelError, match=rf"made {layers} plugin layers .* has 2 nodes"):
            build(FakeTensorRT(plugin_layers=layers), request)
        assert not graph.engine.exists()

    def test_a_plugin_layer_without_plugins_is_refused(self, request_: Request) -> None:
        with pytest.raises(ModelError, match="made 1 plugin layers"):
            build(FakeTensorRT(plugin_layers=1), request_)

    def test_what_the_parser_refuses_names_the_node(self, request_: Request) -> None:
        trt = FakeTensorRT()
        trt.parse_error = "no such operator\n  In parse at /src/file.cpp:3"
        expected = (
            r"^TensorRT 10\.13.* cannot read frame_encoder\.onnx: node n1 \(Foo\): no such op"
        )
        with pytest.raises(ModelError, match=expected) as caught:
            build(trt, request_)
        assert "\n" not in str(caught.value)
        assert "file.cpp" not in str(caught.value)

    def test_the_first_of_the_builders_errors_is_told(self, request_: Request) -> None:
        trt = FakeTensorRT(serialized=None)
        trt.said = ["too\nlarge. In build at a.cpp:1", "and then"]
        with pytest.raises(ModelError, match=r"cannot build frame_encoder\.engine: too large;"):
            build(trt, request_)

    def test_a_builder_that_does_not_start(self, request_: Request) -> None:
        trt = FakeTensorRT()

        def none(log: object) -> object:
            raise TypeError("factory function returned nullptr")

        trt.Builder = none  # type: ignore[method-assign]
        with pytest.raises(ModelError, match="does not start: it gave no reason"):
            build(trt, request_)


class TestTimingCache:
    def test_it_is_kept_and_given_to_the_next_build(self, request_: Request) -> None:
        trt = FakeTensorRT()
        built = build(trt, request_)
        assert built.timing_cache == str(request_.timing_cache)
        assert trt.timings == b"+timed"  # the second graph starts with what the first one timed
        assert Path(built.timing_cache).read_bytes() == b"+timed+timed"
        assert [p.name for p in Path(built.timing_cache).parent.iterdir()] == ["timings"]

    def test_by_default_it_is_in_the_users_cache_by_version_and_gpu(
        self, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        built = build(FakeTensorRT(), Request("tensorrt", request_.graphs, HERE))
        expected = tmp_path / "home" / "msct" / "tensorrt" / "10.13.0.35-sm8.7.timing"
        assert built.timing_cache == str(expected)
        assert expected.is_file()

    def test_one_of_another_gpu_is_refused(self, request_: Request) -> None:
        assert request_.timing_cache is not None
        request_.timing_cache.parent.mkdir()
        request_.timing_cache.write_bytes(b"other")
        with pytest.raises(ModelError, match=r"timing cache .* of another TensorRT or GPU; delete"):
            build(FakeTensorRT(), request_)
        assert request_.timing_cache.read_bytes() == b"other"

    def test_one_that_cannot_be_written_is_one_line(
        self, request_: Request, tmp_path: Path
    ) -> None:
        (tmp_path / "cache").write_text("in the way")
        with pytest.raises(UserError, match="cannot write timing cache"):
            build(FakeTensorRT(), request_)


class TestTheProcess:
    """Real processes that do something else than building."""

    def run(
        self, monkeypatch: pytest.MonkeyPatch, request: Request, child: object, step: object
    ) -> Built:
        monkeypatch.setattr(builder, "_child", child)
        return builder.build(request, step)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("child", "text"),
        [
            (children.killed, "was killed, most likely for memory"),
            (children.ended, "ended with code 134, its last words: terminate called"),
            (children.refused, "no such layer"),
        ],
    )
    def test_its_end_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, request_: Request, child: object, text: str
    ) -> None:
        with pytest.raises(ModelError, match=text) as caught:
            self.run(monkeypatch, request_, child, lambda what: None)
        assert "\n" not in str(caught.value)

    def test_a_bug_in_it_keeps_its_traceback(
        self, monkeypatch: pytest.MonkeyPatch, request_: Request
    ) -> None:
        with pytest.raises(RuntimeError, match="Traceback: KeyError"):
            self.run(monkeypatch, request_, children.broken, lambda what: None)

    def test_interrupted_it_is_gone(
        self, monkeypatch: pytest.MonkeyPatch, request_: Request
    ) -> None:
        pids: list[int] = []

        def interrupt(what: str) -> None:
            pids.append(int(what))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(monkeypatch, request_, children.endless, interrupt)
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)
