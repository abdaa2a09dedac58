# SPDX-License-Identifier: Apache-2.0
"""The page's options of ``runtime.stream``, from what was asked for to a page that is served."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UsageError
from runtime.listen import DEFAULT_PAGE, page_address
from runtime.media.open import BROWSER
from runtime.web import FACES

if TYPE_CHECKING:
    from runtime.backends.base import Backend
    from runtime.web.server import WebServer


def add_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("the page")
    g.add_argument("--web", nargs="?", const=DEFAULT_PAGE, default=None, metavar="HOST:PORT",
                   help="serve a page to watch, and with --source browser to use its camera and "
                        f"microphone (default: this machine only, {DEFAULT_PAGE})")  # fmt: skip
    g.add_argument("--web-faces", choices=FACES, default="show",
                   help="faces on the page: show, blur, or hide every picture "
                        "(default: show)")  # fmt: skip
    g.add_argument("--web-cert", type=Path, default=None, metavar="FILE",
                   help="serve the page over TLS, with this certificate (PEM)")  # fmt: skip
    g.add_argument("--web-key", type=Path, default=None, metavar="FILE",
                   help="the key of --web-cert, where it is in a file of its own")  # fmt: skip
    g.add_argument("--web-hold", action="store_true",
                   help="keep the page up after the sources have ended, until Ctrl-C")  # fmt: skip


def check_options(options: argparse.Namespace, sources: Collection[str]) -> None:
    """Raises :class:`UsageError` where they contradict each other."""
    if options.web is not None:
        return
    if BROWSER in sources:
        raise UsageError(f"--source {BROWSER}: it is the page's camera; add --web")
    for name in ("web_cert", "web_key", "web_hold"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')}: there is no page; add --web")


def make_page(
    options: argparse.Namespace, sources: Collection[str], backend: Backend, judged_by: str
) -> WebServer | None:
    """The page, not served yet; raises :class:`runtime.errors.UserError` where it cannot be."""
    if options.web is None:
        return None
    from runtime.web.server import WebServer
    from runtime.web.sink import WebSink

    sink = WebSink(
        model_id=backend.spec.model_id,
        provider=backend.provider,
        judged_by=judged_by,
        trained=backend.spec.trained,
    )
    page = WebServer(
        page_address(options.web, options.allow_host),
        sink,
        backend.spec,
        faces=options.web_faces,
        certificate=options.web_cert,
        key=options.web_key,
    )
    if BROWSER in sources:
        page.want_browser()
    return page


def announce(page: WebServer, sources: Collection[str]) -> None:
    """Where it is, on standard error, once it is served."""
    print(f"page: {page.url}", file=sys.stderr)
    if BROWSER not in sources:
        return
    print("open it and press \"Use this camera and microphone\"; stop with Ctrl-C",
          file=sys.stderr)  # fmt: skip
    if not page.browser_can_record:
        print("on other machines browsers give a camera only to https://: use --web-cert and "
              "--web-key", file=sys.stderr)  # fmt: skip


def hold(page: WebServer) -> None:
    """Serve on until Ctrl-C."""
    print(f"the page stays at {page.base_url} until Ctrl-C", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        page.wait()
