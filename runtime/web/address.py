# SPDX-License-Identifier: Apache-2.0
"""Where the page is served, and by which names it may be called."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass

from runtime.errors import UsageError
from runtime.listen import is_loopback, parse_listen

DEFAULT = "127.0.0.1:8080"
TOKEN_VARIABLE = "MSCT_WEB_TOKEN"
MIN_TOKEN_CHARS = 16
LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "::1"])


@dataclass(frozen=True)
class Address:
    """Host and port to listen on; port 0 is any free one."""

    host: str
    port: int

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
        """May a request name this ``Host`` (port left out)?

        A hostile web page can point its own name at this machine (DNS rebinding) and would then
        count as the same site.  So only names that nobody else can claim are answered to: on
        loopback its own, beyond it addresses in figures and this machine's names.
        """
        host = host.lower().rstrip(".")
        if self.loopback:
            return host in LOOPBACK_NAMES or host == self.host
        own = socket.gethostname().lower()
        if host in {*LOOPBACK_NAMES, self.host.lower(), own, f"{own.split('.')[0]}.local"}:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def parse_address(text: str) -> Address:
    """As :func:`runtime.listen.parse_listen`."""
    return Address(*parse_listen(text, DEFAULT, "--web"))


@dataclass(frozen=True)
class Token:
    """What opens the page.  ``generated``: nobody knows it yet, so it has to be printed."""

    value: str
    generated: bool


def choose_token(address: Address) -> Token | None:
    """The token of MSCT_WEB_TOKEN; else none on loopback and a new one beyond it.

    Raises :class:`UsageError` for one that can be guessed.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given:
        if len(given) < MIN_TOKEN_CHARS or not re.fullmatch(r"[A-Za-z0-9._~-]+", given):
            raise UsageError(
                f"{TOKEN_VARIABLE}: a token has at least {MIN_TOKEN_CHARS} letters, digits, dots "
                "and dashes; unset it to get one made"
            )
        return Token(given, generated=False)
    return None if address.loopback else Token(secrets.token_urlsafe(24), generated=True)
