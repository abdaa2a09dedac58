# SPDX-License-Identifier: Apache-2.0
"""Where to listen: --web and --metrics take the same, know what is this machine alone, and answer
to the same names."""

from __future__ import annotations

import argparse
import socket

import pytest

from runtime.errors import UsageError
from runtime.listen import Address, check_allowed, host_name, is_loopback, parse_listen


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


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True),
     ("0.0.0.0", False), ("::", False), ("192.0.2.7", False), ("jetson.lan", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert Address(host, 1).loopback is loopback


def test_on_loopback_only_its_own_names_are_answered_to() -> None:
    address = Address("127.0.0.1", 8080)
    assert address.answers_to("localhost")
    assert address.answers_to("127.0.0.1")
    for other in ("evil.example", "127.0.0.1.evil.example", "192.0.2.7", ""):
        assert not address.answers_to(other)


def test_beyond_loopback_addresses_in_figures_and_own_names_are_answered_to() -> None:
    address = Address("0.0.0.0", 8080)
    assert address.answers_to("192.0.2.7")
    assert address.answers_to("fd00::2")
    assert address.answers_to(socket.gethostname())
    assert Address("jetson.lan", 8080).answers_to("Jetson.lan")
    for other in ("evil.example", "192.0.2.7.evil.example", ""):
        assert not address.answers_to(other)


def test_names_that_were_given_are_answered_to_beyond_loopback_alone() -> None:
    given = frozenset(["msct"])
    for name in ("msct", "MSCT", "msct."):
        assert Address("0.0.0.0", 8080, given).answers_to(name)
        assert not Address("127.0.0.1", 8080, given).answers_to(name)
    for other in ("x.msct", "msct.evil.example", "evil.example"):
        assert not Address("0.0.0.0", 8080, given).answers_to(other)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:9108", None, None),
        ("[::1]", None, None),
        ("127.0.0.1:9108", "http://127.0.0.1:9108", None),
        ("127.0.0.1:9108", "http://evil.example", 403),
        ("127.0.0.1:9108", "null", 403),
        ("127.0.0.1:9108", "http://[", 403),
        ("evil.example", None, 421),
        ("evil.example", "http://evil.example", 421),
        ("localhost:x", None, 421),
        ("localhost, evil.example", None, 421),
        ("", None, 421),
    ],
)
def test_who_is_refused(host: str, origin: str | None, status: int | None) -> None:
    assert Address("127.0.0.1", 0).refusal(host, origin) == status


def test_a_name_to_allow_is_a_name_alone() -> None:
    assert host_name("MSCT_1.lan.") == "msct_1.lan"
    for text in ("", "*", "*.lan", "msct:9108", "http://msct", "a..b", "a b", "a" * 64):
        with pytest.raises(argparse.ArgumentTypeError, match="name of a host"):
            host_name(text)


def test_names_to_allow_need_something_that_is_served_beyond_loopback() -> None:
    here, everywhere = Address("127.0.0.1", 1), Address("0.0.0.0", 1)
    check_allowed([], [])
    check_allowed(["msct"], [here, everywhere])
    for served in ([], [here]):
        with pytest.raises(UsageError, match="--allow-host msct"):
            check_allowed(["msct"], served)
