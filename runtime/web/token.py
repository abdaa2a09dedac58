# SPDX-License-Identifier: Apache-2.0
"""What opens the page."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass

from runtime.errors import UsageError
from runtime.listen import Address

TOKEN_VARIABLE = "MSCT_WEB_TOKEN"
MIN_TOKEN_CHARS = 16


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
