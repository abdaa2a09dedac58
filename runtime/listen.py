# SPDX-License-Identifier: Apache-2.0
"""Where to listen, as people write it, and who can reach an address."""

from __future__ import annotations

import ipaddress
import re

from runtime.errors import UsageError


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
