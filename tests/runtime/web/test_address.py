# SPDX-License-Identifier: Apache-2.0
"""What --web takes, and whom the page answers."""

from __future__ import annotations

import socket

import pytest

from runtime.errors import UsageError
from runtime.web.address import TOKEN_VARIABLE, Address, choose_token, parse_address


def test_what_is_left_out_is_the_pages_own() -> None:
    assert parse_address("0.0.0.0") == Address("0.0.0.0", 8080)
    with pytest.raises(UsageError, match="--web"):
        parse_address("http://x:1")


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


class TestToken:
    @pytest.fixture(autouse=True)
    def nothing_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(TOKEN_VARIABLE, raising=False)

    def test_loopback_needs_none(self) -> None:
        assert choose_token(Address("127.0.0.1", 1)) is None

    def test_beyond_it_one_is_made_and_no_two_are_alike(self) -> None:
        first, second = (choose_token(Address("0.0.0.0", 1)) for _ in range(2))
        assert first is not None
        assert second is not None
        assert first.generated
        assert len(first.value) >= 32
        assert first.value != second.value

    def test_one_of_the_environment_counts_everywhere(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, "sixteen-or-more-characters")
        for host in ("127.0.0.1", "0.0.0.0"):
            token = choose_token(Address(host, 1))
            assert token is not None
            assert token.value == "sixteen-or-more-characters"
            assert not token.generated

    @pytest.mark.parametrize("weak", ["short", "has spaces in it, and more", "ümläuteümläuteü"])
    def test_one_that_can_be_guessed_or_not_be_sent_is_refused(
        self, weak: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, weak)
        with pytest.raises(UsageError, match=TOKEN_VARIABLE):
            choose_token(Address("127.0.0.1", 1))
