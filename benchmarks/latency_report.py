# SPDX-License-Identifier: Apache-2.0
"""A latency result for people: a table, pictures, one HTML page, all of it from the JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import svg
from runtime.files import write_json, write_text

TARGET_P99_MS = {"cpu": 150.0, "gpu": 50.0}  # capture to verdict beyond the evidence wait

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--page:#fff;
--card:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9da7b3;--line:#30363d;
--page:#0f1317;--card:#181d23}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.2rem 1rem 3rem;background:var(--page);
color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.4rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}
p{max-width:46rem;margin:.4rem 0}.soft{color:var(--soft)}
.big{font-size:1.6rem;font-weight:700;margin:.6rem 0 0}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem;
align-items:start}
figure{margin:0;padding:.8rem;border:1px solid var(--line);border-radius:8px;
background:var(--card)}
figure svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.25rem .9rem .25rem 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}
th:first-child,td:first-child{text-align:left}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1.2rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
"""


def write(result: Mapping[str, Any], output: Path) -> list[Path]:
    """JSON, pictures and page; ``output`` is a folder, or the JSON file that names the others."""
    if output.suffix == ".json":
        target, stem = output, output.with_suffix("")
    else:
        target, stem = output / "latency.json", output / "latency"
    pictures = {stem.with_name(f"{stem.name}-{k}.svg"): v for k, v in draw(result).items()}
    page_path = stem.with_name(f"{stem.name}.html")
    write_json(target, result)
    for path, text in pictures.items():
        write_text(path, text)
    write_text(page_path, page(result))
    return [target, *pictures, page_path]


def draw(result: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SVG."""
    capture = result["capture"]
    drawn = {
        "waterfall": svg.waterfall("From capture to verdict, by stage", capture["stages"]),
        "capture": svg.histogram(
            "Capture to verdict, beyond the evidence wait", capture["beyond_evidence"]
        ),
    }
    for case in result["engine"]["cases"]:
        name = case["name"].replace(" ", "-").replace("=", "").lower()
        drawn[name] = svg.histogram(case["name"], case["latency"])
    return drawn


def target_p99_ms(result: Mapping[str, Any]) -> float:
    return TARGET_P99_MS["cpu" if "CPU" in result["model"]["provider"] else "gpu"]


def table(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    capture, wait = result["capture"], result["capture"]["evidence_wait"]
    lines = [headline(result), "", *columns(_latency_rows(result))]
    lines += [transfers(result), ""]
    lines += columns(_stage_rows(capture))
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


def _latency_rows(result: Mapping[str, Any]) -> list[list[str]]:
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


def _stage_rows(capture: Mapping[str, Any]) -> list[list[str]]:
    stages = capture["stages"]
    percentiles = [key for key in next(iter(stages.values())) if key[0] == "p"]
    heads = [key.removesuffix("_ms") for key in percentiles]
    rows = [["stage, ms", "mean", *heads, "slowest 5 %"]]
    for name, figures in stages.items():
        keys = ("mean_ms", *percentiles, "mean_of_slowest_ms")
        rows.append([name, *(f"{figures[key]:.2f}" for key in keys)])
    return rows


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


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


def page(result: Mapping[str, Any]) -> str:
    """One file with everything in it, for light and dark, wide and narrow."""
    figures = "".join(f"<figure>{picture}</figure>" for picture in draw(result).values())
    wait = result["capture"]["evidence_wait"]
    settings, model = result["settings"], result["model"]
    about = {
        **dict(facts(result)),
        "clip": f"{settings['source']}, {settings['size']} at {settings['fps']} pictures a second",
        "source SHA-256": settings["source_sha256"],
        "files": ", ".join(f"{name} {sha[:16]}" for name, sha in model["files"].items()),
        "pair": model["pair_id"],
        "power mode": result["device"]["power_mode"] or "none that the system tells",
        "load average before": f"{result['load_average_before']:.2f}",
        "measured": f"{result['time']}, commit {result['commit'] or 'unknown'}",
        "versions": ", ".join(f"{k} {v}" for k, v in result["versions"].items()),
    }
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Latency</title><style>{STYLE}</style></head><body>\n"
        f"<h1>From capture to verdict</h1><p>{escape(headline(result))}</p>\n"
        f'<p class="big">{_big(result)}</p><p>{escape(judgement(result))}.</p>\n'
        f'<p class="soft">Beyond the evidence wait: a window of {wait["window_s"]:g} s must be '
        f"full first, and one becomes full every {wait['hop_s']:g} s. Every sample is in these "
        "figures; none was clipped.</p>\n"
        f'<div class="grid">{figures}</div>\n'
        f"<h2>Times</h2>{_html_table(_latency_rows(result))}"
        f"<p class='soft'>{escape(transfers(result))}</p>\n"
        f"<h2>By stage</h2>{_html_table(_stage_rows(result['capture']))}\n"
        f"<h2>And else</h2><dl>{rows}</dl>\n</body></html>\n"
    )


def _big(result: Mapping[str, Any]) -> str:
    shown = result["capture"]["beyond_evidence"]["percentiles"]
    return " · ".join(f"{escape(name)} {p['ms']:.0f} ms" for name, p in shown.items())


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
