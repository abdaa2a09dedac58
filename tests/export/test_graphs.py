# SPDX-License-Identifier: Apache-2.0
"""From torch to the two ONNX files, on a small form of the real network.

Small in width and depth only: every kind of layer is in it, so every kind of node is.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch (.[train])")
onnx = pytest.importorskip("onnx", reason="exporting needs onnx (.[export])")
pytest.importorskip("onnxscript", reason="exporting needs onnxscript (.[export])")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime (.[cpu])")

from export import build_engine, graphs  # noqa: E402
from export.parity import FUSION_SHAPES, ParityError, compare, real_windows  # noqa: E402
from export.precision import custom_op_nodes, to_fp16  # noqa: E402
from runtime.backends.base import FUSION_OUTPUTS, FusionOutput  # noqa: E402
from runtime.backends.onnx import OnnxBackend, read_pair  # noqa: E402
from runtime.errors import EXIT_OK, ModelError, UsageError  # noqa: E402
from runtime.models import PRESETS as KNOWN_PRESETS  # noqa: E402
from runtime.spec import Calibration, FaceSpec, PairSpec  # noqa: E402
from tests.trainer.prepared import write_noise_set  # noqa: E402
from trainer.config import PRESETS, ModelConfig, preset  # noqa: E402
from trainer.data.prepared import PreparedSet  # noqa: E402
from trainer.fit import FitConfig, Trainer  # noqa: E402
from trainer.loop.from_pair import _Weights, load_pair  # noqa: E402
from trainer.model.checkpoint import save_checkpoint  # noqa: E402
from trainer.model.msct import MSCT  # noqa: E402
from trainer.scoring.windows import TorchPair  # noqa: E402

pytestmark = pytest.mark.thorough  # torch traces a graph in seconds, whatever its size

BLOCKS = 1
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}
REAL_WAVELETS = _Weights._wavelets
ROOT = Path(__file__).resolve().parents[2]
CLIPS = Path(os.environ.get("MSCT_GRID", ROOT.parent / "shared" / "data" / "grid"))


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    backbone = {"stem_channels": 8, "widths": [4, 4, 4, 4], "outputs": [8, 8, 16, 16]}
    sizes = {
        "crop_px": 32,
        "channels": 32,
        "blocks": BLOCKS,
        "align_dim": 8,
        "inject_lags": 3,
        "lag_evidence": 1,
    }
    return preset("msct-tiny", backbone={**backbone, "cbam_reduction": 4}, **sizes)


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> MSCT:
    """Random weights, none of them a constant: a forgotten bias or statistic would show."""
    model, _ = graphs.untrained(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("running_var"):
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def spec(config: ModelConfig) -> PairSpec:
    calibration = Calibration(temperature_av=1.5, threshold=0.4)
    face = FaceSpec(crop_px=config.crop_px)
    return PairSpec(model=config.model_spec(), face=face, calibration=calibration, trained=True)


@pytest.fixture(scope="module")
def exported(
    model: MSCT, spec: PairSpec, tmp_path_factory: pytest.TempPathFactory
) -> graphs.ExportedPair:
    return graphs.export_pair(model, spec, tmp_path_factory.mktemp("export") / "pair")


def load(path: Path) -> onnx.ModelProto:
    return onnx.load_from_string(path.read_bytes())


class TestParity:
    def test_every_probe_was_compared_and_agrees(self, exported: graphs.ExportedPair) -> None:
        assert exported.parity.probes == 3 * len(FUSION_SHAPES)
        assert exported.parity.max_logit_difference <= 1e-4
        assert max(exported.parity.max_difference.values()) <= 1e-4

    @pytest.mark.parametrize("t", [1, 2, 51, 150])
    def test_windows_of_any_length(
        self, model: MSCT, exported: graphs.ExportedPair, t: int
    ) -> None:
        rng = np.random.default_rng(t)
        frames = rng.integers(0, 256, (t, 32, 32, 3), dtype=np.uint8)
        audio = rng.standard_normal((1, t, 104), dtype=np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(frames)[None], torch.from_numpy(audio))
        with OnnxBackend(exported.frame_encoder.parent, threads=1) as backend:
            found = backend.fuse(backend.encode(frames)[None], audio)
        for name in FUSION_OUTPUTS:
            torch.testing.assert_close(
                torch.from_numpy(getattr(found, name)),
                getattr(expected, name),
                atol=1e-4,
                rtol=1e-4,
            )

    def test_a_difference_stops_the_export(
        self, model: MSCT, spec: PairSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pair = graphs.export_pair  # the graphs themselves are made once: take them as given
        made = {"frame_encoder_model": onnx.ModelProto(), "fusion_model": onnx.ModelProto()}
        for name, value in made.items():
            monkeypatch.setattr(graphs, name, lambda model, spec, value=value: value)
        monkeypatch.setattr(graphs, "OnnxBackend", lambda folder: TorchPair(other))
        monkeypatch.setattr(TorchPair, "__enter__", lambda self: self, raising=False)
        monkeypatch.setattr(TorchPair, "__exit__", lambda *args: None, raising=False)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.fusion.head_both.bias[1] += 0.01
        with pytest.raises(ParityError, match=r"by 0\.01 in logits, more than 0\.0001"):
            pair(model, spec, tmp_path / "pair")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not CLIPS.is_dir(), reason="no GRID clips beside the repository")
    def test_real_input(self, model: MSCT, exported: graphs.ExportedPair) -> None:
        pytest.importorskip("dlib", reason="finding faces needs dlib")
        clip = min((CLIPS / "speakers").glob("*.mpg"))
        windows = real_windows(clip, exported.spec, limit=1)
        assert windows[0].frames.shape == (exported.spec.stream.window_tokens, 32, 32, 3)
        with OnnxBackend(exported.frame_encoder.parent, threads=1) as backend:
            parity = compare(
                backend, TorchPair(model), exported.spec, names=("a", "b"), real=windows
            )
        assert parity.real_windows == 1
        parity.check(logits=1e-4)


class TestTheFiles:
    def test_one_node_a_custom_op_and_module(self, exported: graphs.ExportedPair) -> None:
        fusion = load(exported.fusion)
        ops = [node.op_type for node in fusion.graph.node if node.domain == "msct"]
        assert ops.count("MultiScaleKeyConv") == 2 * BLOCKS
        assert ops.count("DifferentialCrossAttention") == 2 * BLOCKS
        assert custom_op_nodes(load(exported.frame_encoder)) == 0

    def test_each_custom_op_has_one_body_and_its_attributes(
        self, exported: graphs.ExportedPair
    ) -> None:
        fusion = load(exported.fusion)
        names = sorted(function.name for function in fusion.functions)
        assert names == ["DifferentialCrossAttention", "MultiScaleKeyConv"]
        for node in fusion.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "MultiScaleKeyConv":
                assert attributes["kernel_sizes"] == [1, 3, 5, 7]
                assert attributes["prefix_tokens"] == 1
            elif node.op_type == "DifferentialCrossAttention":
                assert attributes["scale"] == pytest.approx((32 / 4) ** -0.5)

    def test_operator_sets(self, exported: graphs.ExportedPair) -> None:
        fusion, encoder = load(exported.fusion), load(exported.frame_encoder)
        assert {o.domain: o.version for o in fusion.opset_import} == {"": 18, "msct": 1}
        assert {o.domain: o.version for o in encoder.opset_import} == {"": 18}

    def test_frames_meet_a_cast_first(self, exported: graphs.ExportedPair) -> None:
        first = load(exported.frame_encoder).graph.node[0]
        assert (first.op_type, list(first.input)) == ("Cast", ["frames"])

    def test_names_types_and_dynamic_dimensions(self, exported: graphs.ExportedPair) -> None:
        def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
            return {
                v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
                for v in values
            }

        encoder, fusion = load(exported.frame_encoder).graph, load(exported.fusion).graph
        assert shapes(encoder.input) == {"frames": ["N", 32, 32, 3]}
        assert shapes(encoder.output) == {"visual": ["N", 32]}
        assert shapes(fusion.input) == {"visual": ["B", "T", 32], "audio": ["B", "T", 104]}
        assert list(shapes(fusion.output)) == list(FUSION_OUTPUTS)
        assert shapes(fusion.output)["sync"] == ["B", "T"]
        assert shapes(fusion.output)["align_v"] == ["B", "T", 8]
        assert shapes(fusion.output)["embedding"] == ["B", 64]

    def test_both_carry_the_whole_spec(self, exported: graphs.ExportedPair, spec: PairSpec) -> None:
        found, _ = read_pair(exported.frame_encoder.parent)
        assert found == exported.spec
        assert found.calibration == spec.calibration
        assert found.trained
        assert found.model_id == f"msct-tiny-{found.pair_id[:8]}"

    @pytest.mark.parametrize("name", ["frame_encoder", "fusion"])
    def test_nothing_tells_of_the_machine_that_made_them(
        self, exported: graphs.ExportedPair, name: str
    ) -> None:
        data = getattr(exported, name).read_bytes()
        readable = b"\n".join(re.findall(rb"[\x20-\x7e]{6,}", data))
        for trace in (b"site-packages", b".py", b"stack_trace", b"File ", str(ROOT).encode()):
            assert trace not in readable
        model = load(getattr(exported, name))
        assert not model.doc_string
        assert not model.graph.doc_string
        assert not any(n.doc_string or n.metadata_props for n in model.graph.node)

    @pytest.mark.parametrize("name", ["frame_encoder", "fusion"])
    def test_they_are_single_files(self, exported: graphs.ExportedPair, name: str) -> None:
        model = load(getattr(exported, name))
        external = onnx.TensorProto.EXTERNAL
        assert not any(t.data_location == external for t in model.graph.initializer)
        names = {path.name for path in exported.fusion.parent.iterdir()}
        assert names == {"frame_encoder.onnx", "fusion.onnx", "manifest.json"}


class TestTheWayBack:
    """trainer.loop.from_pair: the weights out of the graphs."""

    def test_the_network_gives_what_it_gave(
        self, model: MSCT, config: ModelConfig, exported: graphs.ExportedPair
    ) -> None:
        found = load_pair(exported.frame_encoder.parent, config)
        frames = torch.randint(0, 256, (1, 9, 32, 32, 3), dtype=torch.uint8)
        audio = torch.randn(1, 9, 104)
        with torch.inference_mode():
            want, got = model(frames, audio), found(frames, audio)
        for name in FUSION_OUTPUTS:
            torch.testing.assert_close(
                getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-4
            )
        state = found.state_dict()
        for name, value in model.fusion.state_dict().items():  # nothing is folded there
            assert torch.equal(state[f"fusion.{name}"], value), name

    def test_a_run_may_begin_with_it_where_normalisation_is_frozen(
        self, config: ModelConfig, exported: graphs.ExportedPair, tmp_path: Path
    ) -> None:
        data = PreparedSet(write_noise_set(tmp_path / "set", splits=SPLITS, tokens=45, crop_px=32))
        pair = exported.frame_encoder.parent
        values = {"joint_steps": 1, "batch": 4, "window_tokens": 30, "threads": 1, "lr": 1e-12}
        tuned = Trainer(FitConfig(recipe="finetune", **values), config, data, tmp_path / "a")
        tuned.start_from(pair)
        tuned.train_step()
        want = load_pair(pair, config).state_dict()
        for name, value in tuned.model.state_dict().items():
            torch.testing.assert_close(value, want[name], atol=1e-6, rtol=0)
        fresh = Trainer(FitConfig(align_steps=0, **values), config, data, tmp_path / "b")
        with pytest.raises(UsageError, match="--recipe finetune"):
            fresh.start_from(pair)

    @pytest.mark.parametrize(
        "change",
        [{"channels": 64}, {"blocks": 2}, {"mssa_kernels": (3, 3, 3, 3)}, {"lag_evidence": 0}],
    )
    def test_another_configuration_is_refused(
        self, config: ModelConfig, exported: graphs.ExportedPair, change: dict[str, object]
    ) -> None:
        with pytest.raises(ModelError, match="choose --preset as the pair was made"):
            load_pair(exported.frame_encoder.parent, dataclasses.replace(config, **change))

    def test_other_numbers_in_it_are_noticed(
        self, config: ModelConfig, exported: graphs.ExportedPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when an exporter folds what this one does not."""
        monkeypatch.setattr("trainer.loop.from_pair._Weights._wavelets", half_a_wavelet)
        with pytest.raises(ModelError, match="the network differs from the pair by"):
            load_pair(exported.frame_encoder.parent, config)

    def test_half_precision_is_refused(
        self, config: ModelConfig, exported: graphs.ExportedPair, tmp_path: Path
    ) -> None:
        for name in ("frame_encoder", "fusion"):
            half = to_fp16(load(getattr(exported, name)))
            (tmp_path / f"{name}.onnx").write_bytes(half.SerializeToString())
        with pytest.raises(ModelError, match="float16"):
            load_pair(tmp_path, config)


def half_a_wavelet(weights: _Weights) -> None:
    REAL_WAVELETS(weights)
    for name in weights.found:
        if "levels.0.weight" in name:
            weights.found[name] = weights.found[name] / 2


class TestIdentity:
    def test_it_follows_the_weights(self, model: MSCT, spec: PairSpec) -> None:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.fusion.head_both.bias[0] += 1e-6
        first, same, changed = (
            graphs.identify(m, spec).pair_id for m in (model, copy.deepcopy(model), other)
        )
        assert first == same != changed

    def test_it_follows_the_spec_but_not_an_older_identity(
        self, model: MSCT, spec: PairSpec
    ) -> None:
        renamed = dataclasses.replace(spec, pair_id="old", model_id="old")
        recalibrated = dataclasses.replace(spec, calibration=Calibration(threshold=0.9))
        first = graphs.identify(model, spec)
        assert graphs.identify(model, renamed) == first
        assert graphs.identify(model, recalibrated).pair_id != first.pair_id

    @pytest.mark.parametrize(
        "changes", [{"face": FaceSpec(crop_px=64)}, {"model": PairSpec().model}]
    )
    def test_a_spec_of_another_model_is_refused(
        self, model: MSCT, spec: PairSpec, changes: dict[str, object], tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match="spec and model disagree"):
            graphs.export_pair(model, dataclasses.replace(spec, **changes), tmp_path / "pair")
        assert list(tmp_path.iterdir()) == []

    def test_random_weights_are_seeded_and_say_so(self, config: ModelConfig) -> None:
        state = torch.random.get_rng_state()
        first, spec = graphs.untrained(config)
        second, _ = graphs.untrained(config)
        assert not spec.trained
        assert spec.face.crop_px == config.crop_px
        assert graphs.identify(first, spec) == graphs.identify(second, spec)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_the_runtime_knows_the_names_of_all_presets(self) -> None:
        assert sorted(KNOWN_PRESETS) == sorted(PRESETS)


class TestHalfPrecision:
    def test_its_error_is_at_most_twice_that_of_plain_torch(
        self, model: MSCT, exported: graphs.ExportedPair, tmp_path: Path
    ) -> None:
        for path in (exported.frame_encoder, exported.fusion):
            typed = to_fp16(load(path))
            (tmp_path / path.name).write_bytes(typed.SerializeToString())
        half = _HalfTorch(copy.deepcopy(model).half())
        exact = TorchPair(model)
        with OnnxBackend(tmp_path, threads=1) as backend:
            ours = compare(backend, exact, exported.spec, names=("typed", "exact"))
        plain = compare(half, exact, exported.spec, names=("plain", "exact"))
        assert ours.max_probability_difference <= 0.01
        assert ours.max_logit_difference <= 2 * plain.max_logit_difference
        assert ours.max_difference["sync"] <= 2 * plain.max_difference["sync"]


class TestCommandLine:
    def test_a_checkpoint_becomes_the_same_bytes_as_its_weights(
        self,
        model: MSCT,
        config: ModelConfig,
        spec: PairSpec,
        exported: graphs.ExportedPair,
        tmp_path: Path,
    ) -> None:
        checkpoint, report = tmp_path / "best.safetensors", tmp_path / "report.json"
        save_checkpoint(checkpoint, model, config, spec)
        args = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
        args += ["--backend", "onnx"]
        assert build_engine.main([*args, "--report", str(report)]) == EXIT_OK
        for path in (exported.frame_encoder, exported.fusion):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
        assert "torch fp32" in report.read_text()

    def test_a_damaged_checkpoint_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoint = tmp_path / "best.safetensors"
        checkpoint.write_text("no checkpoint")
        assert build_engine.main(["--checkpoint", str(checkpoint), "--backend", "onnx"]) == 1
        assert capsys.readouterr().err.count("\n") == 1


class _HalfTorch(TorchPair):
    """The network in plain torch half precision, boundaries in float32."""

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return super().encode(frames).astype(np.float32)

    @torch.inference_mode()
    def fuse(self, visual: np.ndarray, audio: np.ndarray) -> FusionOutput:
        out = self.model.fusion(torch.from_numpy(visual).half(), torch.from_numpy(audio).half())
        arrays = (getattr(out, name).float().numpy() for name in FUSION_OUTPUTS)
        return FusionOutput(*arrays)
