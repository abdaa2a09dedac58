# SPDX-License-Identifier: Apache-2.0
"""Where to listen, as people write it, who can reach an address, and whom it answers.

A hostile web page can point its own name at this machine (DNS rebinding) and would then count as
the same site.  So what is served here, the page and the metrics, answers only to names that nobody
else can claim: on loopback its own, beyond it addresses in figures, this machine's names, and those
that its owner gave (``--allow-host``).
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from runtime.errors import UsageError

DEFAULT_PAGE = "127.0.0.1:8080"
LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "::1"])
FOREIGN_SITE, FOREIGN_NAME = 403, 421
REFUSALS = {
    FOREIGN_SITE: "a page of another site asks; only the page that is served here may",
    FOREIGN_NAME: "this name does not belong to this machine; use its address in figures, or serve "
    "it with --allow-host",
}
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/?#@\[\]\\]+))(?::[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True)
class Address:
    """Host and port to listen on; port 0 is any free one.

    ``allowed``: further names of this machine, beyond loopback.
    """

    host: str
    port: int
    allowed: frozenset[str] = frozenset()

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def any_interface(self) -> bool:
        return self.host in ("0.0.0.0", "::")

    def netloc(self, port: int | None = None) -> str:
        host = socket.gethostname() if self.any_interface else self.host
        return f"[{host}]:{port or self.port}" if ":" in host else f"{host}:{port or self.port}"

    def answers_to(self, host: str) -> bool:
        """May a request name this ``Host`` (port left out)?"""
        host = host.lower().rstrip(".")
        if self.loopback:
            return host in LOOPBACK_NAMES or host == self.host
        own = socket.gethostname().lower()
        names = {*LOOPBACK_NAMES, self.host.lower(), own, f"{own.split('.')[0]}.local"}
        if host in names | self.allowed:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def refusal(self, host: str, origin: str | None) -> int | None:
        """Of a request with these headers: one of :data:`REFUSALS`, or None.

        Browsers send ``Origin`` with every WebSocket and every request that is not a plain
        navigation; it must be the page itself.
        """
        if not self.answers_to(_hostname(host)):
            return FOREIGN_NAME
        if origin is not None and _netloc(origin) != host.lower():
            return FOREIGN_SITE
        return None


def add_option(p: argparse._ActionsContainer) -> None:
    p.add_argument("--allow-host", action="append", type=host_name, default=[], metavar="NAME",
                   help="beyond this machine: a further name by which the page and the metrics may "
                        "be asked for; may be given several times")  # fmt: skip


def host_name(text: str) -> str:
    """For argparse: a name as ``Host`` has it, without a port, in lower case."""
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a host, as in msct.lan")
    return text.lower().rstrip(".")


def check_allowed(allowed: Iterable[str], served: Iterable[Address]) -> None:
    """Raises :class:`UsageError` where nothing is served that the names could be for."""
    names = [*allowed]
    if names and all(address.loopback for address in served):
        raise UsageError(
            f"--allow-host {names[0]}: neither --web nor --metrics is served beyond this machine; "
            "leave it out, or give one of them another address"
        )


def parse_listen(text: str, default: str, option: str) -> tuple[str, int]:
    """``HOST:PORT``, ``:PORT``, ``PORT``, ``HOST``, ``[IPv6]:PORT`` -> host and port.

    What is left out is ``default``'s, which is HOST:PORT; ``option`` is named where the text is
    none of these: :class:`UsageError`.
    """
    default_host, _, default_port = default.rpartition(":")
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]/]*))(?::(\d{1,5}))?", text)
    if found is None or not text:
        raise UsageError(f"{option} {text}: HOST:PORT is expected, as in {default} or [::1]:8080")
    host, port = found[1] or found[2], found[3]
    if port is None and host.isdecimal():
        host, port = "", host
    if int(port or 0) > 65535:
        raise UsageError(f"{option} {text}: a port is a number up to 65535")
    return host or default_host, int(port or default_port)


def is_loopback(host: str) -> bool:
    """Is it this machine alone?  A name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hostname(host: str) -> str:
    """``Host`` without its port; IPv6 without its brackets; empty where it is no host and port."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]) if match else ""


def _netloc(origin: str) -> str | None:
    """Host and port of a site; None: it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as "http://["
        return None


def page_address(text: str, allowed: Iterable[str] = ()) -> Address:
    """Of ``--web``, as :func:`parse_listen`."""
    return Address(*parse_listen(text, DEFAULT_PAGE, "--web"), frozenset(allowed))
