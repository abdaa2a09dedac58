# SPDX-License-Identifier: Apache-2.0
"""A POST to a URL when what is said of a face changes.

The body is JSON: ``{"event": "verdict_change", "previous": null | "real" | ..., "verdict": {...}}``
with the verdict as in the JSON Lines.  An answer of 2xx is a delivery; a server that is away, busy
(408, 429) or broken (5xx) is tried again with growing pauses, anything else is final.  Redirects
are not followed: the secret goes to the host that was named and to no other.

The secret is the environment variable :data:`TOKEN_VARIABLE`, sent as ``Authorization: Bearer``.
Neither it nor the path of the URL, which often is a secret too, is ever printed.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import UsageError, UserError
from runtime.listen import is_loopback
from runtime.sinks.background import Worker
from runtime.verdict import Label, Verdict

TOKEN_VARIABLE = "MSCT_WEBHOOK_TOKEN"
TIMEOUT_S = 5.0  # of one try
PAUSES_S = (0.5, 2.0, 8.0)  # between tries, each up to a quarter longer
MAX_QUEUED = 256  # changes
MAX_FACES = 1024  # whose labels are remembered
BUSY = (408, 425, 429)
UNDELIVERED = "not delivered"


class DeliveryError(UserError):
    """A change that could not be delivered."""


class WebhookSink:
    """Posts the changes of labels; deliveries run in a thread of their own.

    Parameters
    ----------
    url : http or https; plain http with a secret only to this machine
    on_abstain : whether to abstain is a change, too; otherwise abstentions are passed over
    token : the secret, by default of the environment

    Raises :class:`UsageError` for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        on_abstain: bool = False,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._url, self._token = url, token or None
        self._where = check_url(url, self._token)
        self._on_abstain, self._timeout_s, self._pauses_s = on_abstain, timeout_s, pauses_s
        self._last: OrderedDict[tuple[str, int | None], Label] = OrderedDict()
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirect)
        self.worker = Worker(f"--webhook {self._where}", max_items=MAX_QUEUED)
        self.delivered = 0
        self.last_error: str | None = None  # of a delivery that failed for good

    def write(self, verdict: Verdict) -> None:
        if verdict.label is Label.ABSTAIN and not self._on_abstain:
            return
        key = (verdict.source, verdict.face_id)
        previous = self._last.get(key)
        self._last[key] = verdict.label
        self._last.move_to_end(key)
        while len(self._last) > MAX_FACES:
            self._last.popitem(last=False)
        if previous is not verdict.label:
            body = payload(verdict, previous)
            self.worker.put("change", lambda: self._deliver(body))

    def close(self, drain_s: float) -> None:
        self.worker.close(drain_s)
        self._stop.set()  # a pause between tries ends now

    def notes(self) -> list[str]:
        """For the summary."""
        notes = self.worker.notes()
        if notes and self.last_error:
            notes[0] += f"; last error: {self.last_error}"
        return notes

    @property
    def failed(self) -> bool:
        """Did a change not get there?"""
        return self.worker.error is not None or bool(sum(self.worker.lost.values()))

    def _deliver(self, body: bytes) -> None:
        why = ""
        for pause_s in (*self._pauses_s, None):
            try:
                self._post(body)
                self.delivered += 1
                return
            except _TryAgain as err:
                why = str(err)
                if pause_s is None or self._stop.wait(pause_s * random.uniform(1, 1.25)):
                    break
            except DeliveryError as err:
                why = str(err)
                break
        self.last_error = why
        self.worker.lost["change", UNDELIVERED] += 1

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "msct-webhook/1"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s):
                return
        except urllib.error.HTTPError as err:
            err.close()
            if 300 <= err.code < 400:
                raise DeliveryError(f"HTTP {err.code}, redirects are not followed") from None
            kind = _TryAgain if err.code >= 500 or err.code in BUSY else DeliveryError
            raise kind(f"HTTP {err.code}") from None
        except (OSError, http.client.HTTPException) as err:
            reason = getattr(err, "reason", err)
            text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _TryAgain(" ".join(text.split())) from None


class _TryAgain(DeliveryError):
    """A failure that may pass."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def payload(verdict: Verdict, previous: Label | None) -> bytes:
    """The body of a POST."""
    change = {
        "event": "verdict_change",
        "previous": None if previous is None else previous.value,
        "verdict": json.loads(verdict.to_json()),
    }
    return json.dumps(change, allow_nan=False).encode()


def check_url(url: str, token: str | None) -> str:
    """``scheme://host[:port]``, all of a URL that may be printed; raises :class:`UsageError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("--webhook: that is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("--webhook takes a URL that starts with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"--webhook: no user or password in the URL; give a secret in {TOKEN_VARIABLE}"
        )
    if not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
        raise UsageError("--webhook: the URL has characters that must be percent-encoded")
    if token and not (token.isascii() and token.isprintable()):
        raise UsageError(f"{TOKEN_VARIABLE} holds characters that no HTTP header may have")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}"
    if token and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            f"--webhook {where}: {TOKEN_VARIABLE} would travel unencrypted; use https://"
        )
    return where
