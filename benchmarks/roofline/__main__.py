# SPDX-License-Identifier: Apache-2.0
"""How fast could one hop be on a Jetson?  A prediction from the graphs and from data sheets.

    python -m benchmarks.roofline [--model msct-tiny|FOLDER] [--output FILE.json]

Counts the operations and bytes of one hop of the live stream (``hop_tokens`` crops through
``frame_encoder``, one window through ``fusion``) in the ONNX files, in fp32 and typed fp16, and
divides them by the peaks of each module: :mod:`benchmarks.roofline.graph_cost` says how it counts,
:mod:`benchmarks.roofline.model` what the prediction is made of and what it leaves out.  Nothing is
measured: ``benchmarks.latency`` does that, on the device.  Needs the extra ``export``; no torch.

``--output FILE.json`` keeps the figures, ``--picture FILE.svg`` draws them (matplotlib).  For
``--preset msct``, which ships no weights, give the folder that ``python -m export.build_engine
--preset msct --backend onnx`` writes: random weights are as many.

Exit codes: 0 done, 1 operational error, 2 usage.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import columns, describe
from runtime.command import Parser, guarded
from runtime.errors import EXIT_OK, UsageError
from runtime.files import write_json, write_text
from runtime.interrupt import leave
from runtime.models import DEFAULT_PRESET, model_dir, model_files
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.spec import PairSpec

if TYPE_CHECKING:
    from benchmarks.roofline.graph_cost import Graph

READINGS = ("node by node", "fused", "once")
NOTICE = "PREDICTION from the graphs and data sheets: nothing was run on any of these devices"


def load(folder: Path) -> tuple[PairSpec, dict[str, dict[str, Graph]]]:
    """The spec of a pair and its counted graphs, by precision and by file.

    An fp32 pair is counted as it is and typed fp16 as the exporter does it, an fp16 pair as it is.

    Raises :class:`UsageError` for a quantised pair, whose peaks are not known here,
    :class:`runtime.errors.ModelError` for what is no pair, :class:`DependencyError` without onnx.
    """
    from runtime.backends.onnx import read_pair

    spec, files = read_pair(folder)
    if spec.int8:
        raise UsageError(
            f"{folder} is quantised ({spec.precision}), and peaks for int8 are not among those "
            "known here; give the fp32 pair that it was made of"
        )
    with optional("to count operations"):
        import onnx

        from benchmarks.roofline.graph_cost import count
        from export.precision import to_fp16
    stream = spec.stream
    sizes = ({"N": stream.hop_tokens}, {"B": 1, "T": stream.window_tokens})
    models = [onnx.load_from_string(data) for data in files]
    forms = {spec.precision: models}
    if spec.precision == "fp32":
        forms["fp16"] = [to_fp16(model) for model in models]
    return spec, {
        precision: {
            name: count(model, size)
            for name, model, size in zip(("frame_encoder", "fusion"), pair, sizes, strict=True)
        }
        for precision, pair in forms.items()
    }


def counted(graphs: dict[str, Graph]) -> dict[str, Any]:
    """Counts and predictions of one precision, for each reading; JSON-ready."""
    from benchmarks.roofline.model import DEVICES, kernels, once, predict, totals

    result: dict[str, Any] = {}
    for reading in READINGS:
        runs = {
            name: [once(graph)] if reading == "once" else kernels(graph, fused=reading == "fused")
            for name, graph in graphs.items()
        }
        hop = [kernel for run in runs.values() for kernel in run]
        result[reading] = {
            **totals(hop),
            "graphs": {name: totals(run) for name, run in runs.items()},
            "devices": {
                device.name: {
                    **predict(hop, device),
                    "graphs": {name: predict(run, device) for name, run in runs.items()},
                }
                for device in DEVICES
            },
        }
    return result


def analyse(folder: Path) -> dict[str, Any]:
    """All of it for one pair, JSON-ready; raises as :func:`load`."""
    spec, forms = load(folder)
    from benchmarks.roofline.model import DEVICES

    about = describe()
    return {
        "benchmark": "roofline",
        "schema_version": 1,
        "prediction": True,
        "notice": NOTICE,
        "not_included": [
            "the time to launch a kernel, gaps between kernels, copies to and from the host",
            "caches: every value is charged to the memory",
            "clocks below the maximum, and memory shared with cameras and the CPU",
        ],
        **{key: about[key] for key in ("time", "commit", "versions")},
        "model": {
            "model_id": spec.model_id,
            "pair_id": spec.pair_id,
            "trained": spec.trained,
            "precision": spec.precision,
        },
        "hop": {
            "crops": spec.stream.hop_tokens,
            "crop_px": spec.face.crop_px,
            "window_tokens": spec.stream.window_tokens,
            "hop_ms": 1000 * spec.stream.hop_tokens / spec.audio.token_hz,
        },
        "devices": [device.to_dict() for device in DEVICES],
        "precisions": {precision: counted(graphs) for precision, graphs in forms.items()},
    }


def report(result: dict[str, Any]) -> str:
    """The tables for people."""
    hop, model = result["hop"], result["model"]
    lines = [
        NOTICE,
        f"{model['model_id']}: one hop of {hop['hop_ms']:g} ms is {hop['crops']} crops of "
        f"{hop['crop_px']} px through frame_encoder and a window of {hop['window_tokens']} tokens "
        "through fusion",
        "",
    ]
    rows = [["counted", "kernels", "MFLOP", "weights MB", "other MB", "FLOP/byte"]]
    for precision, readings in result["precisions"].items():
        for reading, n in readings.items():
            other = n["activation_bytes_read"] + n["activation_bytes_written"]
            rows.append(
                [f"{precision}, {reading}", "-" if reading == "once" else str(n["kernels"]),
                 f"{n['flops'] / 1e6:.1f}", f"{n['weight_bytes'] / 1e6:.2f}", f"{other / 1e6:.2f}",
                 f"{n['flop_per_byte']:.1f}"]
            )  # fmt: skip
    lines += [*columns(rows), ""]
    rows = [["predicted ms a hop", "GB/s", "TFLOP/s", *READINGS, "bound, fused"]]
    for precision, readings in result["precisions"].items():
        for device in result["devices"]:
            found = {reading: readings[reading]["devices"][device["name"]] for reading in READINGS}
            fused = found["fused"]
            share = fused["memory_bound_share"]
            rows.append(
                [f"{device['name']}, {precision}", f"{device['memory_gb_s']:g}",
                 f"{device[_PEAK[precision]]:.3g}",
                 *(f"{found[reading]['predicted_ms']:.3f}" for reading in READINGS),
                 f"{fused['bound']} ({share if share >= 0.5 else 1 - share:.0%} of the time)"]
            )  # fmt: skip
    lines += columns(rows)
    notes = [f"{d['name']}: {d['fp16_note']}" for d in result["devices"] if d["fp16_note"]]
    last = next(reversed(result["precisions"].values()))["fused"]["kernels"]
    lines += [
        "",
        "TFLOP/s: fp16 dense, of the tensor cores; fp32 of the CUDA cores, derived as 2 x cores x "
        "clock",
        *(f"fp16 of {note}" for note in notes),
        f"not in it: launching kernels; each microsecond of it adds {last / 1000:.2f} ms to the "
        f"{last} of the last fused row, unless a CUDA graph hides it",
    ]
    return "\n".join(lines)


_PEAK = {"fp32": "fp32_cuda_tflops", "fp16": "fp16_tensor_dense_tflops"}


def picture(result: dict[str, Any]) -> str:
    """The roofline as SVG, of fp16 where it was counted: attainable TFLOP/s over FLOP/byte."""
    with optional("for --picture"):
        import matplotlib as mpl

    from trainer.report import plots

    precision, readings = next(reversed(result["precisions"].items()))
    intensity = {name: readings[name]["flop_per_byte"] for name in READINGS}
    lowest = min(intensity.values()) / 2
    figure, axes = plots.figure_and_axes(5.6, 5.2)
    a = axes[0, 0]
    colours = mpl.colormaps["viridis"].resampled(len(result["devices"]) + 1).colors
    highest = 0.0
    for device, colour in zip(result["devices"], colours, strict=False):
        memory, peak = device["memory_gb_s"], device[_PEAK[precision]]
        ridge = peak * 1000 / memory
        highest = max(highest, ridge * 2)
        label = f"{device['name']}: {memory:g} GB/s, {peak:.3g} TFLOP/s"
        x = (lowest, ridge, 1e5)
        a.plot(x, (memory * lowest / 1000, peak, peak), color=colour, lw=2, label=label)
    for height, (name, at) in zip((0.02, 0.09, 0.16), intensity.items(), strict=False):
        a.axvline(at, color=plots.INK, lw=0.8, ls="--")
        across = a.get_xaxis_transform()
        a.text(at * 1.05, height, f"{name} {at:.3g}", transform=across, color=plots.INK)
    a.set(xscale="log", yscale="log", xlabel="FLOP/byte", ylabel="TFLOP/s")
    a.set_xlim(lowest, max(highest, 4 * max(intensity.values())))
    title = f"One hop of {result['model']['model_id']}, {precision}"
    said = "A prediction: roofs of data sheets, intensity of the graphs"
    a.set_title(f"{title}\n{said}", loc="left", fontsize=10, color=plots.INK)
    plots.add_legend(a, loc="upper left", bbox_to_anchor=(0, -0.18))
    return plots.as_svg(figure, title)


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m benchmarks.roofline",
        description="Predicts the time of one hop on Jetsons; measures nothing.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage.",
    )
    p.add_argument("--model", default=DEFAULT_PRESET, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an ONNX pair "
                        "(default: %(default)s)")  # fmt: skip
    p.add_argument("--output", type=Path, metavar="FILE.json",
                   help="where the JSON goes")  # fmt: skip
    p.add_argument("--picture", type=Path, metavar="FILE.svg",
                   help="the roofs and the intensity of a hop (needs matplotlib)")  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    for path, suffix in ((options.output, ".json"), (options.picture, ".svg")):
        if path is not None and path.suffix != suffix:
            raise UsageError(f"{path}: its name must end in {suffix}")
    named = (("--output", options.output), ("--picture", options.picture))
    refuse_overwrites(
        [n for n in named if n[1] is not None], model_files(options.model), options=vars(options)
    )
    result = analyse(model_dir(options.model))
    drawn = picture(result) if options.picture is not None else ""
    print(report(result))
    if options.output is not None:
        write_json(options.output, result)
    if options.picture is not None:
        write_text(options.picture, drawn)
    return EXIT_OK


if __name__ == "__main__":
    leave(main)
