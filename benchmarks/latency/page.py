# SPDX-License-Identifier: Apache-2.0
"""The page and the pictures of a latency result, on any machine that has matplotlib and jinja2.

    python -m benchmarks.latency.page latency.json [--output DIR]

Written: ``NAME.html`` with everything in it, ``NAME-waterfall.svg`` and one SVG a distribution,
beside the JSON or in DIR.  The device that measures needs none of this.
"""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.interrupt import install

    install()

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import table
from benchmarks.latency.schema import check
from runtime.command import Parser, guarded
from runtime.errors import EXIT_OK, UsageError
from runtime.files import write_text
from runtime.interrupt import leave
from runtime.optional import optional
from runtime.overwrites import refuse_overwrites
from runtime.pages import fill

TEMPLATE = Path(__file__).with_name("page.html")


def page(result: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """One file with everything in it, for light and dark, wide and narrow."""
    settings, model = result["settings"], result["model"]
    about = {
        **dict(table.facts(result)),
        "clip": f"{settings['source']}, {settings['size']} at {settings['fps']} pictures a second",
        "source SHA-256": settings["source_sha256"],
        "files": ", ".join(f"{name} {sha[:16]}" for name, sha in model["files"].items()),
        "pair": model["pair_id"],
        "power mode": result["device"]["power_mode"] or "none that the system tells",
        "load average before": f"{result['load_average_before']:.2f}",
        "measured": f"{result['time']}, commit {result['commit'] or 'unknown'}",
        "versions": ", ".join(f"{k} {v}" for k, v in result["versions"].items()),
    }
    shown = result["capture"]["beyond_evidence"]["percentiles"]
    return fill(
        TEMPLATE,
        headline=table.headline(result),
        big=" · ".join(f"{name} {p['ms']:.0f} ms" for name, p in shown.items()),
        judgement=table.judgement(result),
        wait=result["capture"]["evidence_wait"],
        pictures=pictures,
        latency_rows=table.latency_rows(result),
        transfers=table.transfers(result),
        stage_rows=table.stage_rows(result["capture"]),
        about=about,
    )


def write(result: Mapping[str, Any], source: Path, folder: Path) -> list[Path]:
    """The page, then the pictures, of the result that was read from ``source``.

    Raises :class:`UsageError` where one of them is that file.
    """
    name = source.stem
    with optional("for the page"):
        from benchmarks.latency.pictures import draw

        pictures = draw(result)
        text = page(result, list(pictures.values()))
    written = {folder / f"{name}.html": text}
    written |= {folder / f"{name}-{key}.svg": picture for key, picture in pictures.items()}
    refuse_overwrites([("--output", path) for path in written], [source])
    for path, content in written.items():
        write_text(path, content)
    return list(written)


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m benchmarks.latency.page",
        description="The page and the pictures of a result of benchmarks.latency.",
        epilog="Exit codes: 0 done, 1 operational error, 2 usage.",
    )
    p.add_argument("result", type=Path, metavar="FILE.json")
    p.add_argument("--output", type=Path, metavar="DIR", help="default: beside the JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of :mod:`runtime.errors`."""
    options = parser().parse_args(argv)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    try:
        result = json.loads(options.result.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"{options.result} cannot be read as JSON: {err}") from err
    check(result)
    for path in write(result, options.result, options.output or options.result.parent):
        print(f"written: {path}", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    leave(main)
