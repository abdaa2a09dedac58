# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the ops, as far as it can be held without a GPU: cases, statistics, report."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from benchmarks import ops
from benchmarks.ops import ATTENTION, KEY_CONV, OURS, Case
from runtime import native
from runtime.errors import EXIT_ERROR, UserError


class Clock:
    """A sampler whose calls take the given microseconds, in turn."""

    def __init__(self, *times_us):
        self._times_us = itertools.cycle(times_us)

    def sample_us(self):
        return next(self._times_us)


def row(variants, clocks, errors=None, rounds=8):
    """A measured row of a case; ``clocks`` are by variant, and so are errors."""
    case = Case(ATTENTION, "float16", 1, 8, 51, 64)
    functions = {name: (lambda name=name: name) for name in variants}
    by_function = {functions[name]: clocks[name] for name in variants if name in clocks}
    errors = errors or {}
    measured = ops.measure(
        case,
        functions,
        lambda result: errors.get(result, 1e-3),
        lambda function: by_function[function],
        rounds,
    )
    return {**measured, "floor_us": ops.floor_us(case, RATES)}


RATES = {"bytes_per_s": 1e12, "float16_flops_per_s": 1e14, "float32_flops_per_s": 1e13}


class TestCases:
    def test_every_size_of_both_models_is_there(self):
        cases = ops.cases()
        assert len(cases) == len(set(cases)) == 2 * 3 * 2 * 3 * 4
        assert {(c.heads, c.dim) for c in cases} == {(8, 64), (4, 32)}
        assert {c.batch for c in cases} == {1, 4, 16}
        assert {26, 51, 101, 151} == {c.tokens for c in cases}

    def test_the_quick_ones_are_the_ones_of_one_stream(self):
        assert [(c.op, c.batch, c.tokens) for c in ops.cases(quick=True)] == [
            (ATTENTION, 1, 51),
            (KEY_CONV, 1, 51),
        ]

    def test_work_is_counted_by_the_definition(self):
        attention = Case(ATTENTION, "float16", 2, 4, 10, 8)
        assert attention.flops == 4 * 2 * (2 * 4 * 10 * 10 * 8)  # four products of T x T x D
        assert attention.bytes == 5 * 640 * 2 + 4 * 4
        conv = Case(KEY_CONV, "float32", 2, 8, 10, 8)
        assert conv.flops == 2 * (2 * 10 * 8) * 2 * 2 * (1 + 9 + 25 + 49)
        assert conv.bytes == 4 * (2 * 1280 + 4 * (1 + 9 + 25 + 49) + 4 * 2)

    def test_the_floor_is_the_longer_of_bytes_and_operations(self):
        case = Case(ATTENTION, "float16", 1, 8, 51, 64)
        assert ops.floor_us(case, RATES) == pytest.approx(case.bytes / 1e12 * 1e6)
        slow = {**RATES, "float16_flops_per_s": 1e9}
        assert ops.floor_us(case, slow) == pytest.approx(case.flops / 1e9 * 1e6)

    def test_compilation_is_for_the_cases_that_were_asked_for(self):
        some = [c for c in ops.cases() if ops.wants_compiled(c, "some")]
        assert {(c.dtype, c.tokens) for c in some} == {("float16", 51)}
        assert not any(ops.wants_compiled(c, "none") for c in ops.cases())
        assert all(ops.wants_compiled(c, "all") for c in ops.cases())


class TestStatistics:
    def test_spread_is_median_and_middle_ninety_per_cent(self):
        assert ops.spread(range(101)) == {"median_us": 50.0, "p05_us": 5.0, "p95_us": 95.0}

    def test_speedup_is_how_many_times_faster_ours_is(self):
        found = ops.speedup([2.0] * 10, [5.0] * 10)
        assert found == {"ratio": 2.5, "low": 2.5, "high": 2.5}

    def test_its_interval_holds_the_truth_and_shrinks_with_rounds(self):
        rng = np.random.default_rng(0)

        def found(rounds):
            ours, other = rng.normal(10, 1, rounds), rng.normal(15, 1, rounds)
            return ops.speedup(ours, other)

        few, many = found(20), found(2000)
        assert few["low"] < few["ratio"] < few["high"]
        assert many["low"] < 1.5 < many["high"]
        assert many["high"] - many["low"] < few["high"] - few["low"]

    def test_what_slows_a_whole_round_does_not_widen_it(self):
        clock = np.random.default_rng(0).uniform(1, 2, 60)
        found = ops.speedup(3 * clock, 6 * clock)
        assert found["low"] == pytest.approx(2)
        assert found["high"] == pytest.approx(2)

    def test_samples_of_different_rounds_are_refused(self):
        with pytest.raises(ValueError, match="not of the same rounds"):
            ops.speedup([1.0, 2.0], [1.0])


class TestMeasure:
    def test_variants_take_turns_and_the_best_other_is_named(self):
        found = row(
            [OURS, "slow", "fast"],
            {OURS: Clock(2.0), "slow": Clock(9.0), "fast": Clock(3.0, 5.0)},
        )
        assert found["best_other"] == "fast"
        assert found["variants"][OURS]["median_us"] == 2.0
        assert found["variants"]["fast"]["median_us"] == 4.0
        assert found["variants"]["fast"]["speedup_of_ours"]["ratio"] == 2.0
        assert found["variants"]["slow"]["speedup_of_ours"]["ratio"] == 4.5
        assert "speedup_of_ours" not in found["variants"][OURS]

    def test_a_variant_that_cannot_run_or_is_wrong_is_left_out_with_the_reason(self):
        clocks = {OURS: Clock(1.0), "wrong": Clock(0.1), "nan": Clock(0.1)}
        errors = {"wrong": 0.5, "nan": float("nan")}
        found = row([OURS, "wrong", "nan", "broken"], clocks, errors)
        assert found["variants"]["wrong"] == {"left_out": "wrong: error 0.5 of the largest value"}
        assert "left_out" in found["variants"]["nan"]
        assert "left_out" in found["variants"]["broken"]
        assert found["best_other"] is None

    def test_ours_being_wrong_ends_the_benchmark(self):
        with pytest.raises(UserError, match=r"our kernel failed: wrong: error 0\.5"):
            row([OURS], {OURS: Clock(1.0)}, {OURS: 0.5})


class TestReport:
    ROW = row([OURS, "sdpa-flash", "eager"], {OURS: Clock(2.0), "eager": Clock(8.0)})

    def test_a_line_a_case_with_what_was_left_out_as_a_dash(self):
        head, line = ops.table([self.ROW]).splitlines()
        assert head.split()[:8] == ["op", "type", "B", "h", "T", "D", "floor", "ours"]
        assert line.split()[:6] == ["attention", "float16", "1", "8", "51", "64"]
        assert line.split()[7:10] == ["2.00", "-", "8.00"]
        assert line.endswith("4.00x [4.00, 4.00]")

    def test_rows_are_json(self):
        again = json.loads(json.dumps(self.ROW))
        assert again == self.ROW
        assert set(again) == {
            "op", "dtype", "batch", "heads", "tokens", "dim", "flops", "bytes", "best_other",
            "variants", "floor_us",
        }  # fmt: skip


class TestCommand:
    @pytest.mark.parametrize(
        "arguments", [["--rounds", "1"], ["--rounds", "x"], ["--compile", "y"]]
    )
    def test_wrong_options_are_a_usage_error(self, arguments, capsys):
        with pytest.raises(SystemExit) as caught:
            ops.main(arguments)
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err

    def test_without_a_gpu_it_says_so_in_one_line(self, capsys, monkeypatch, tmp_path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        target = tmp_path / "ops.json"
        assert ops.main(["--output", str(target)]) == EXIT_ERROR
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "measured on a GPU" in err
        assert not target.exists()

    def test_without_our_kernels_it_says_how_to_compile_them(self, capsys, monkeypatch):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        cpu_only = native.Capabilities(built=True, reason=None, compiler="GNU 12")
        monkeypatch.setattr(native, "capabilities", lambda: cpu_only)
        assert ops.main([]) == EXIT_ERROR
        assert "MSCT_CUDA=ON" in capsys.readouterr().err
