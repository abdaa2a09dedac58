# SPDX-License-Identifier: Apache-2.0
"""Who can reach an address to listen on, or to send to."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Is it this machine alone?  A name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
