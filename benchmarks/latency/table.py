# SPDX-License-Identifier: Apache-2.0
"""A latency result in words: the table for a terminal, and the lines that the page repeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.environment import columns

TARGET_P99_MS = {"cpu": 150.0, "gpu": 50.0}  # capture to verdict beyond the evidence wait


def target_p99_ms(result: Mapping[str, Any]) -> float:
    return TARGET_P99_MS["cpu" if "CPU" in result["model"]["provider"] else "gpu"]


def table(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    capture, wait = result["capture"], result["capture"]["evidence_wait"]
    lines = [headline(result), "", *columns(latency_rows(result))]
    lines += [transfers(result), ""]
    lines += columns(stage_rows(capture))
    lines += [
        "",
        f"evidence wait, apart: windows of {wait['window_s']:g} s every {wait['hop_s']:g} s; sound "
        f"is looked at {wait['sound_look_ahead_ms']:g} ms ahead",
        *(f"{name}: {value}" for name, value in facts(result)),
        judgement(result),
    ]
    return "\n".join(lines)


def headline(result: Mapping[str, Any]) -> str:
    machine, model, device = result["machine"], result["model"], result["device"]
    gpus = "".join(f", {gpu['name']}" for gpu in device["gpus"])
    return (
        f"{model['model_id']} ({model['precision']}) on {model['provider']}, "
        f"{machine['cores']} cores ({machine['processor']}){gpus}"
    )


def judgement(result: Mapping[str, Any]) -> str:
    """The p99 against what is to be reached, and how many samples it rests on."""
    latency = result["capture"]["beyond_evidence"]
    if "p99" not in latency["percentiles"]:
        return "the 99th percentile was not asked for, so nothing is said about the target"
    p99, target = latency["percentiles"]["p99"], target_p99_ms(result)
    verb = "within" if p99["ms"] <= target else "above"
    return (
        f"capture to verdict p99 {p99['ms']:.1f} ms ({_interval(p99)}), {verb} the {target:g} ms "
        f"to reach; {p99['samples_above']} of {latency['samples']} windows lie above it"
    )


def _interval(p: Mapping[str, Any]) -> str:
    low = "?" if p["low_ms"] is None else f"{p['low_ms']:.1f}"
    high = "?" if p["high_ms"] is None else f"{p['high_ms']:.1f}"
    return f"95 %: {low} to {high}"


def transfers(result: Mapping[str, Any]) -> str:
    """Upload, compute and download in one line, or why they are not told apart."""
    reason = result["engine"]["transfers_reason"]
    if reason is not None:
        return f"upload, compute and download are not told apart: {reason}"
    told = []
    for case in result["engine"]["cases"]:
        parts = (
            f"{name} {latency['percentiles']['p50']['ms']:.3f}"
            for name, latency in case["transfers"].items()
        )
        told.append(f"{case['name']}: {', '.join(parts)}")
    return f"median ms of {'; '.join(told)}"


def latency_rows(result: Mapping[str, Any]) -> list[list[str]]:
    named = [(case["name"], case["latency"]) for case in result["engine"]["cases"]]
    named.append(("capture to verdict", result["capture"]["beyond_evidence"]))
    percentiles = list(named[0][1]["percentiles"])
    rows = [["ms", "samples", "min", "mean", *percentiles, "max"]]
    for name, latency in named:
        values = [latency["min_ms"], latency["mean_ms"]]
        values += [latency["percentiles"][p]["ms"] for p in percentiles]
        rows.append(
            [name, str(latency["samples"]), *(f"{v:.2f}" for v in (*values, latency["max_ms"]))]
        )
    return rows


def stage_rows(capture: Mapping[str, Any]) -> list[list[str]]:
    stages = capture["stages"]
    percentiles = [key for key in next(iter(stages.values())) if key[0] == "p"]
    heads = [key.removesuffix("_ms") for key in percentiles]
    rows = [["stage, ms", "mean", *heads, "slowest 5 %"]]
    for name, figures in stages.items():
        keys = ("mean_ms", *percentiles, "mean_of_slowest_ms")
        rows.append([name, *(f"{figures[key]:.2f}" for key in keys)])
    return rows


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else was measured, a line each."""
    capture, first, heat = result["capture"], result["capture"]["first_verdict"], result["heat"]
    judged = first["first_judged_window_end_s"]
    slope = capture["lag_slope_ms_per_min"]
    drops = ", ".join(f"{name} {n}" for name, n in capture["drops"].items() if n) or "none"
    found = [
        (
            "first verdict",
            f"{first['from_capture_s']:.2f} s after the first capture, "
            f"{first['from_process_start_s']:.2f} s after the process began (loading the model "
            f"{first['model_load_s']:.2f} s); "
            + ("every window abstained" if judged is None else f"judged from {judged:g} s on"),
        ),
        (
            "windows",
            f"{capture['windows']}, coverage {capture['coverage']:.0%}; of {capture['pictures']} "
            f"pictures dropped or late: {drops}",
        ),
        (
            "latency growth",
            "the run was too short to say" if slope is None else f"{slope:+.2f} ms a minute",
        ),
        ("decoder, ahead of time", f"{capture['decoder_ms_per_picture']:.2f} ms a picture"),
        (
            "memory",
            f"{capture['peak_memory_mb']:.0f} MB at most, {capture['cpu_share']:.2f} cores",
        ),
    ]
    for reading in result["power"]["readings"]:
        found += _reading_facts(reading)
    if not result["power"]["readings"]:
        why = "; ".join(f"{k}: {v}" for k, v in result["power"]["missing"].items())
        found.append(("power", f"not measured ({why})"))
    after = heat["after_c"]
    found.append(
        (
            "temperature",
            ", ".join(f"{zone} {c:.0f} °C" for zone, c in after.items()) or "no sensor can be read",
        )
    )
    events = heat["cpu_throttle_events"]
    found.append(
        (
            "processor slowed down by heat",
            "not told by this system" if events is None else f"{events} times",
        )
    )
    return found


def _reading_facts(reading: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    idle = "" if reading["idle_w"] is None else f", {reading['idle_w']:.1f} W before it"
    yield (
        f"power ({reading['source']})",
        f"{reading['mean_w']:.1f} W on average of {reading['of']}{idle}; "
        f"{reading['joules_per_stream_s']:.1f} J for a second of stream",
    )
    memory = reading["device_memory_mb"]
    if memory:
        yield (
            f"memory in use ({reading['source']})",
            f"{memory['highest']:.0f} MB at most by everybody, {memory['at_start']:.0f} at start",
        )
    if reading["temperature_c"]:
        shown = ", ".join(f"{k} {c:.0f} °C" for k, c in reading["temperature_c"].items())
        yield (f"temperature ({reading['source']})", shown)
    shown = ", ".join(f"{k} {share:.0%} of the time" for k, share in reading["throttled"].items())
    if shown:
        yield (f"slowed down ({reading['source']})", shown)
