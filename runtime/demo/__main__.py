# SPDX-License-Identifier: Apache-2.0
"""The demonstration behind ``make demo``: one clip as it is, and with its sound shifted.

Both are streamed and their verdicts shown side by side, whatever they are.  The clip is outside
what the shipped weights were trained on and nothing is tuned to it: an abstention is a fine
answer.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime import leftovers
from runtime.command import Parser, guarded
from runtime.errors import EXIT_OK, MediaError, UsageError
from runtime.files import write_json
from runtime.interrupt import check, leave
from runtime.media.local_files import ffmpeg_name
from runtime.naming import name_of_file
from runtime.overwrites import refuse_overwrites
from runtime.demo.sample import sample_clip
from runtime.spec import AudioSpec
from runtime.judging.verdict import Label, Verdict

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.backends.base import Backend
    from runtime.flow.summary import Summary

ORIGINAL, SHIFTED = "original", "sound_shifted"
SUMMARY = "summary.json"
FILES = (f"{ORIGINAL}.jsonl", f"{SHIFTED}.jsonl", SUMMARY)
MAX_SHIFT_S = 4.0  # several seconds, and at most half of the clip


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(lambda: run_demo(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m runtime.demo", description="Stream a sample clip "
                                "as it is and with its sound shifted, side by side.")  # fmt: skip
    p.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR",
                   help="where the verdicts go (default: demo)")  # fmt: skip
    p.add_argument("--source", type=Path, default=None, metavar="FILE",
                   help="another clip with sound (default: the sample clip)")  # fmt: skip
    p.add_argument("--model", default=None, metavar="NAME|DIR",
                   help="a shipped preset, or a folder with an ONNX pair")  # fmt: skip
    p.add_argument("--allow-untrained", action="store_true",
                   help="run a model with random weights; its verdicts mean nothing")  # fmt: skip
    return p


def run_demo(options: argparse.Namespace) -> int:
    from runtime.backends import load_backend
    from runtime.models import DEFAULT_PRESET, model_files
    from runtime.sinks import terminal

    out = terminal.console()
    clip = options.source if options.source is not None else sample_clip()
    refuse_overwrites(
        (("--output", options.output / name) for name in FILES),
        [clip, *model_files(options.model)],
    )
    with load_backend(options.model or DEFAULT_PRESET) as backend:
        if not backend.spec.trained and not options.allow_untrained:
            raise UsageError("the model's weights are random; give --allow-untrained to see it run")
        terminal.print_line(out, f"model {backend.spec.model_id} on {backend.provider}")
        with leftovers.folder() as folder:
            shifted = folder / f"{SHIFTED}.mp4"
            shift_s = shift_sound(clip, shifted)
            runs = {}
            for name, path in ((ORIGINAL, clip), (SHIFTED, shifted)):
                called = f"{name_of_file(clip.name)} ({name})"
                runs[name] = _stream(path, backend, options.output, name, called)
    _write_summary(options.output, {n: s for n, (s, _) in runs.items()}, shift_s)
    _print_side_by_side(out, {n: verdicts for n, (_, verdicts) in runs.items()}, shift_s)
    for name, (summary, _) in runs.items():
        terminal.print_line(out, name, style="bold")
        terminal.print_summary(out, summary)
    terminal.print_line(out, f"written: {options.output}/{', '.join(FILES)}")
    return EXIT_OK


def shift_sound(source: Path, target: Path) -> float:
    """A copy of ``source`` whose sound is rotated by seconds; the picture is not encoded again.

    The sound's end moves to its beginning.  Returns the shift in seconds.  Raises
    :class:`MediaError` for a clip without picture or sound.
    """
    from runtime.media import AudioChunk
    from runtime.media.file import FileSource

    with FileSource(source) as media:
        if not (media.info.has_video and media.info.has_audio):
            raise MediaError(f"{source}: the demo needs a clip with picture and sound")
        pieces = []
        for chunk in media:
            check()
            if isinstance(chunk, AudioChunk):
                pieces.append(chunk.samples)
    rate_hz = AudioSpec().sample_rate_hz
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    shift_s = min(MAX_SHIFT_S, samples.size / rate_hz / 2)
    _mux(source, np.roll(samples, round(shift_s * rate_hz)), rate_hz, target)
    return shift_s


def _mux(picture: Path, samples: np.ndarray[Any, Any], rate_hz: int, target: Path) -> None:
    """The first video stream of ``picture`` as it is, and ``samples`` [n] as AAC."""
    import av

    from runtime.media.file import READ_OPTIONS

    with (
        av.open(ffmpeg_name(picture), options=dict(READ_OPTIONS)) as source,
        av.open(ffmpeg_name(target), "w") as out,
    ):
        video = source.streams.video[0]
        copied = out.add_stream_from_template(video)
        sound: Any = out.add_stream("aac", rate=rate_hz)
        sound.layout = "mono"
        for packet in source.demux(video):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = rate_hz, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))


def _stream(
    path: Path, backend: Backend, folder: Path, name: str, called: str
) -> tuple[Summary, list[Verdict]]:
    from runtime.media.file import FileSource
    from runtime.flow.driver import run
    from runtime.flow.sink import Collector
    from runtime.sinks.jsonl import JsonLinesSink

    _make_folder(folder)
    kept = Collector()
    with FileSource(path) as source, JsonLinesSink(folder / f"{name}.jsonl") as jsonl:
        summary = run(source, backend, sinks=[kept, jsonl], name=called)
        jsonl.commit()
    return summary, kept.verdicts


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UsageError(f"cannot write to {folder}: {err.strerror}") from None


def _print_side_by_side(out: Console, runs: dict[str, list[Verdict]], shift_s: float) -> None:
    """A row a second and face, a column a clip."""
    from rich import box
    from rich.table import Table

    from runtime.sinks.terminal import COLOURS, bar, number, outcome, shown_scores

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("time", justify="right")
    table.add_column("face", justify="right")
    titles = {ORIGINAL: "as it is: fake", SHIFTED: f"sound moved by {shift_s:.1f} s: fake"}
    for name in runs:
        table.add_column(titles[name])
        table.add_column("verdict")
    cells: dict[tuple[int, int], dict[str, Verdict]] = {}
    for name, verdicts in runs.items():
        for v in verdicts:  # the last verdict of a second stands for it
            face = -1 if v.face_id is None else v.face_id
            cells.setdefault((int(v.t_end_s + 1e-9), face), {})[name] = v
    plain = out.options.ascii_only
    for (second, face), found in sorted(cells.items()):
        row = [f"{second} s", "-" if face < 0 else str(face)]
        for name in runs:
            if name not in found:
                row += ["", ""]
                continue
            v = found[name]
            p_fake, *_ = shown_scores(v)
            row.append(f"{bar(p_fake, plain)} {number(p_fake)}")
            row.append(f"[{COLOURS[v.label]}]{outcome(v)}[/]")
        table.add_row(*row)
    out.print(table)


def _write_summary(folder: Path, runs: dict[str, Summary], shift_s: float) -> None:
    data = {
        "sound_shifted_by_s": shift_s,
        "fake_windows": {name: s.stats.labels[Label.FAKE.value] for name, s in runs.items()},
        "runs": {name: s.to_dict() for name, s in runs.items()},
    }
    write_json(folder / SUMMARY, data)


if __name__ == "__main__":
    leave(main)
