# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP connection, with an end for clients that never ask and that ask badly."""

from __future__ import annotations

import importlib
from typing import Any

REQUEST_S = 10.0  # from connecting to a whole request; a page asks at once


def connection_class() -> type[Any]:
    """To be given to ``uvicorn.Config(http=...)``."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    h11: Any = importlib.import_module("h11")  # uvicorn's parser, there with it

    class Connection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(REQUEST_S, self._expect_request)

        def _expect_request(self) -> None:
            """Where nothing was asked it counts towards the limit on all, for ever."""
            if self in self.connections and self.cycle is None:  # no WebSocket by now, no request
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            """Beside an answer that is on its way or was sent uvicorn would fail."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()
                return
            if self.cycle is not None:
                self.cycle.disconnected = True  # what the app still says goes nowhere
            super().send_400_response(msg)

    return Connection
