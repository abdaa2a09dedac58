# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the ops, without a GPU: cases, variants, statistics, report, the CPU rows."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys

import numpy as np
import pytest

from benchmarks.ops import __main__ as ops
from benchmarks.ops import cases as op_cases
from benchmarks.ops import engine as op_engine
from benchmarks.ops import onnx_graph as op_onnx
from benchmarks.ops import variants as op_variants
from benchmarks.ops.cases import ATTENTION, CPU, CUDA, KEY_CONV, Case
from benchmarks.ops.variants import EAGER, OURS
from runtime.backends import native
from runtime.errors import EXIT_ERROR, EXIT_OK, UserError


class Clock:
    """A sampler whose calls take the given microseconds, in turn."""

    def __init__(self, *times_us):
        self._times_us = itertools.cycle(times_us)

    def sample_us(self):
        return next(self._times_us)


def row(variants, clocks, errors=None, rounds=8, baseline=OURS):
    """A measured row of a case; ``clocks`` are by variant, and so are errors."""
    case = Case(ATTENTION, "float16", 1, 8, 51, 64)
    functions = {name: (lambda name=name: name) for name in variants}
    by_function = {functions[name]: clocks[name] for name in variants if name in clocks}
    errors = errors or {}
    measured = ops.measure(
        case,
        {name: (lambda function=function: function) for name, function in functions.items()},
        lambda result: errors.get(result, 1e-3),
        lambda function: by_function[function],
        baseline,
        rounds,
    )
    return {**measured, "floor_us": op_cases.floor_us(case, RATES)}


RATES = {"bytes_per_s": 1e12, "float16_flops_per_s": 1e14, "float32_flops_per_s": 1e13}
SMALL = {op: Case(op, "float32", 2, 4, 9, 8) for op in (ATTENTION, KEY_CONV)}


class TestCases:
    @pytest.mark.parametrize(("device", "types"), [(CUDA, 3), (CPU, 1)])
    def test_every_size_of_both_models_is_there(self, device, types):
        cases = op_cases.cases(device)
        assert len(cases) == len(set(cases)) == 2 * types * 2 * 3 * 4
        assert {(c.heads, c.dim) for c in cases} == {(8, 64), (4, 32)}
        assert {c.batch for c in cases} == {1, 4, 16}
        assert {26, 51, 101, 151} == {c.tokens for c in cases}

    @pytest.mark.parametrize(("device", "dtype"), [(CUDA, "float16"), (CPU, "float32")])
    def test_the_quick_ones_are_the_ones_of_one_stream(self, device, dtype):
        found = [(c.op, c.dtype, c.batch, c.tokens) for c in op_cases.cases(device, quick=True)]
        assert found == [(ATTENTION, dtype, 1, 51), (KEY_CONV, dtype, 1, 51)]

    def test_work_is_counted_by_the_definition(self):
        attention = Case(ATTENTION, "float16", 2, 4, 10, 8)
        assert attention.flops == 4 * 2 * (2 * 4 * 10 * 10 * 8)  # four products of T x T x D
        assert attention.bytes == 5 * 640 * 2 + 4 * 4
        conv = Case(KEY_CONV, "float32", 2, 8, 10, 8)
        assert conv.flops == 2 * (2 * 10 * 8) * 2 * 2 * (1 + 9 + 25 + 49)
        assert conv.bytes == 4 * (2 * 1280 + 4 * (1 + 9 + 25 + 49) + 4 * 2)

    def test_the_floor_is_the_longer_of_bytes_and_operations(self):
        case = Case(ATTENTION, "float16", 1, 8, 51, 64)
        assert op_cases.floor_us(case, RATES) == pytest.approx(case.bytes / 1e12 * 1e6)
        slow = {**RATES, "float16_flops_per_s": 1e9}
        assert op_cases.floor_us(case, slow) == pytest.approx(case.flops / 1e9 * 1e6)

    @pytest.mark.parametrize(("device", "dtype"), [(CUDA, "float16"), (CPU, "float32")])
    def test_what_takes_seconds_is_for_the_cases_that_were_asked_for(self, device, dtype):
        cases = op_cases.cases(device)
        some = [c for c in cases if op_cases.wanted(c, device, "some")]
        assert {(c.dtype, c.tokens) for c in some} == {(dtype, 51)}
        assert not any(op_cases.wanted(c, device, "none") for c in cases)
        assert all(op_cases.wanted(c, device, "all") for c in cases)


class TestVariants:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch", reason="torch is not installed (extra train)")

    @pytest.mark.parametrize("op", SMALL)
    def test_those_of_the_cpu_agree_with_float64(self, op):
        for name in ("onnx", "onnxruntime"):
            pytest.importorskip(name, reason=f"{name} is not installed (extras export, cpu)")
        built = op_variants.build(SMALL[op], CPU)
        fused = {"sdpa"} if op == ATTENTION else set()
        assert set(built.makers) == {EAGER, "onnxruntime", "reference"} | fused
        if not native.capabilities().built:
            del built.makers["reference"]
        for name, make in built.makers.items():
            assert built.error(make()()) < 1e-5, name

    @pytest.mark.parametrize("op", SMALL)
    def test_a_wrong_result_has_a_large_error(self, op):
        built = op_variants.build(SMALL[op], CPU)
        right = built.makers[EAGER]()()
        assert built.error(right * 1.5) == pytest.approx(0.5, rel=1e-3)
        assert np.isnan(built.error(np.full(SMALL[op].shape, np.nan, np.float32)))

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("tensorrt", [False, True])
    def test_compiled_and_tensorrt_are_there_when_asked_for(self, compiled, tensorrt):
        tensors = op_variants.inputs(SMALL[ATTENTION], CPU)
        names = set(op_variants._on_gpu(SMALL[ATTENTION], tensors, compiled, tensorrt))
        assert {OURS, EAGER, "sdpa-flash", "sdpa-efficient", "sdpa-cudnn"} <= names
        assert ("compiled" in names) == compiled
        assert {"tensorrt", "tensorrt-plugin"}.isdisjoint(names) == (not tensorrt)
        assert "tensorrt" not in op_variants._on_cpu(SMALL[ATTENTION], tensors, compiled, tensorrt)

    def test_the_linear_form_is_the_op_without_our_domain(self):
        pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
        ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra cpu)")
        case = SMALL[ATTENTION]
        tensors = op_variants.inputs(case, CPU)
        model = op_onnx.linear(case, tensors)
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        feeds = {name: tensor.numpy() for name, tensor in op_onnx.fed(case, tensors).items()}
        (found,) = session.run(None, feeds)
        assert op_variants.build(case, CPU).error(found) < 1e-5

    @pytest.mark.tensorrt
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("op", SMALL)
    def test_tensorrt_builds_them_in_its_own_layers(self, op, dtype):
        from export.choice import Target

        pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
        if importlib.util.find_spec("tensorrt_rtx") is None:
            pytest.skip("TensorRT-RTX is not installed (extra tensorrt-rtx)")
        case = Case(op, dtype, 1, 4, 51, 32)
        target = Target(("8.6",), here=False)
        tensors = op_variants.inputs(case, CPU)
        assert op_engine.build_engine(case, tensors, "tensorrt-rtx", target, None)

    def test_without_tensorrt_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        tensors = op_variants.inputs(SMALL[ATTENTION], CPU)
        with pytest.raises(UserError, match="no TensorRT is installed: pip install"):
            op_engine.in_tensorrt(SMALL[ATTENTION], tensors, plugin=False)


class TestStatistics:
    def test_spread_is_median_and_middle_ninety_per_cent(self):
        assert ops.spread(range(101)) == {"median_us": 50.0, "p05_us": 5.0, "p95_us": 95.0}

    def test_relative_is_how_many_times_as_long_as_the_baseline(self):
        found = ops.relative([5.0] * 10, [2.0] * 10)
        assert found == {"ratio": 2.5, "low": 2.5, "high": 2.5}

    def test_its_interval_holds_the_truth_and_shrinks_with_rounds(self):
        rng = np.random.default_rng(0)

        def found(rounds):
            ours, other = rng.normal(10, 1, rounds), rng.normal(15, 1, rounds)
            return ops.relative(other, ours)

        few, many = found(20), found(2000)
        assert few["low"] < few["ratio"] < few["high"]
        assert many["low"] < 1.5 < many["high"]
        assert many["high"] - many["low"] < few["high"] - few["low"]

    def test_what_slows_a_whole_round_does_not_widen_it(self):
        clock = np.random.default_rng(0).uniform(1, 2, 60)
        found = ops.relative(6 * clock, 3 * clock)
        assert found["low"] == pytest.approx(2)
        assert found["high"] == pytest.approx(2)

    def test_samples_of_different_rounds_are_refused(self):
        with pytest.raises(ValueError, match="not of the same rounds"):
            ops.relative([1.0, 2.0], [1.0])


class TestMeasure:
    def test_variants_take_turns_and_the_best_other_is_named(self):
        found = row(
            [OURS, "slow", "fast"],
            {OURS: Clock(2.0), "slow": Clock(9.0), "fast": Clock(3.0, 5.0)},
        )
        assert found["best_other"] == "fast"
        assert found["variants"][OURS]["median_us"] == 2.0
        assert found["variants"]["fast"]["median_us"] == 4.0
        assert found["variants"]["fast"]["times_baseline"]["ratio"] == 2.0
        assert found["variants"]["slow"]["times_baseline"]["ratio"] == 4.5
        assert "times_baseline" not in found["variants"][OURS]

    def test_a_variant_that_cannot_run_or_is_wrong_is_left_out_with_the_reason(self):
        clocks = {OURS: Clock(1.0), "wrong": Clock(0.1), "nan": Clock(0.1)}
        errors = {"wrong": 0.5, "nan": float("nan")}
        found = row([OURS, "wrong", "nan", "broken"], clocks, errors)
        assert found["variants"]["wrong"] == {"left_out": "wrong: error 0.5 of the largest value"}
        assert "left_out" in found["variants"]["nan"]
        assert "left_out" in found["variants"]["broken"]
        assert found["best_other"] is None

    def test_the_baseline_being_wrong_ends_the_benchmark(self):
        with pytest.raises(UserError, match=r"ours failed: wrong: error 0\.5"):
            row([OURS], {OURS: Clock(1.0)}, {OURS: 0.5})


class TestLoopSampler:
    def test_it_calls_the_function_as_often_as_a_sample_takes(self, monkeypatch):
        now, calls = [0.0], []

        def slow():
            calls.append(0)
            now[0] += 0.5e-3

        monkeypatch.setattr(ops.time, "perf_counter", lambda: now[0])
        sampler = ops.LoopSampler(slow)
        assert len(calls) == 2
        assert sampler.sample_us() == pytest.approx(500)
        assert len(calls) == 2 + 4  # SAMPLE_S


class TestReport:
    ROW = row([OURS, "sdpa-flash", "eager"], {OURS: Clock(2.0), "eager": Clock(8.0)})

    def test_a_line_a_case_with_what_was_left_out_as_a_dash(self):
        head, line = ops.table([self.ROW]).splitlines()
        assert head.split()[:8] == ["op", "type", "B", "h", "T", "D", "floor", "ours"]
        assert line.split()[:6] == ["attention", "float16", "1", "8", "51", "64"]
        assert line.split()[7:10] == ["2.00", "-", "8.00"]
        assert head.endswith("the best other, in times of ours")
        assert line.endswith("   eager 4.00x [4.00, 4.00]")

    def test_the_cpu_compares_with_eager(self):
        clocks = {EAGER: Clock(8.0), "sdpa": Clock(2.0)}
        head, line = ops.table([row(list(clocks), clocks, baseline=EAGER)]).splitlines()
        assert head.split()[7:10] == ["eager", "sdpa", "the"]
        assert line.split()[7:9] == ["8.00", "2.00"]
        assert line.endswith("   sdpa 0.25x [0.25, 0.25]")

    def test_what_was_left_out_is_said_once_a_reason(self):
        broken = self.ROW["variants"]["sdpa-flash"]["left_out"]
        assert ops.left_out([self.ROW, self.ROW]) == [f"left out in 2 cases: sdpa-flash: {broken}"]

    def test_rows_are_json(self):
        again = json.loads(json.dumps(self.ROW))
        assert again == self.ROW
        assert set(again) == {
            "op", "dtype", "batch", "heads", "tokens", "dim", "flops", "bytes", "baseline",
            "best_other", "variants", "floor_us",
        }  # fmt: skip


class TestCommand:
    @pytest.mark.parametrize(
        "arguments", [["--rounds", "1"], ["--rounds", "x"], ["--compile", "y"], ["--device", "z"]]
    )
    def test_wrong_options_are_a_usage_error(self, arguments, capsys):
        with pytest.raises(SystemExit) as caught:
            ops.main(arguments)
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err

    def test_cuda_without_a_gpu_is_an_error_in_one_line(self, capsys, monkeypatch, tmp_path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        target = tmp_path / "ops.json"
        assert ops.main(["--device", "cuda", "--output", str(target)]) == EXIT_ERROR
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "--device cpu does without" in err
        assert not target.exists()

    def test_a_gpu_without_our_kernels_is_an_error_that_says_how_to_compile_them(
        self, capsys, monkeypatch
    ):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        cpu_only = native.Capabilities(built=True, reason=None, compiler="GNU 12")
        monkeypatch.setattr(native, "capabilities", lambda: cpu_only)
        assert ops.main([]) == EXIT_ERROR
        assert "MSCT_CUDA=ON" in capsys.readouterr().err
        assert ops.choose("cpu") == (CPU, "asked for")

    def test_without_torch_it_says_what_to_install(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        assert ops.main(["--device", "cpu"]) == EXIT_ERROR
        assert capsys.readouterr().err == (
            "error: torch is needed to time the ops: pip install '.[train]'\n"
        )

    def test_without_a_gpu_it_runs_the_cpu_rows_and_says_so(self, capsys, monkeypatch, tmp_path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(ops, "cases", lambda device, quick: list(SMALL.values()))
        monkeypatch.setattr(ops, "peaks", lambda device: RATES)
        threads = torch.get_num_threads()
        target = tmp_path / "ops.json"
        assert ops.main(["--rounds", "2", "--output", str(target)]) == EXIT_OK
        out, err = capsys.readouterr()
        assert err.startswith("CPU rows only (")
        assert "1 thread" in err
        assert out.splitlines()[2].startswith("attention  float32")
        found = json.loads(target.read_text())
        assert found["device"]["kind"] == CPU
        assert found["device"]["threads"] == 1
        assert [row["baseline"] for row in found["rows"]] == [EAGER, EAGER]
        assert torch.get_num_threads() == threads
