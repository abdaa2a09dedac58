# SPDX-License-Identifier: Apache-2.0
"""Where to listen: --web and --metrics take the same, and know what is this machine alone."""

from __future__ import annotations

import pytest

from runtime.errors import UsageError
from runtime.listen import is_loopback, parse_listen


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        (":9000", "127.0.0.1", 9000),
        ("9000", "127.0.0.1", 9000),
        ("localhost", "localhost", 9108),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("[::1]:8081", "::1", 8081),
        ("[::]", "::", 9108),
        ("jetson.lan:0", "jetson.lan", 0),
    ],
)
def test_host_or_port_may_be_left_out(text: str, host: str, port: int) -> None:
    assert parse_listen(text, "127.0.0.1:9108", "--metrics") == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://x:1",
        "::1:80",
        "x:70000",
        "x:y",
        "a b:1",
        "x:1/page",
        "127.0.0.1:",
        "127.0.0.1:x",
    ],
)
@pytest.mark.parametrize("option", ["--web", "--metrics"])
def test_anything_else_names_the_option(text: str, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        parse_listen(text, "127.0.0.1:9108", option)


def test_which_of_them_are_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "example.org")))
