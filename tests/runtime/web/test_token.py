# SPDX-License-Identifier: Apache-2.0
"""What --web takes, and what opens the page."""

from __future__ import annotations

import pytest

from runtime.errors import UsageError
from runtime.listen import Address, page_address
from runtime.web.token import TOKEN_VARIABLE, choose_token


def test_what_is_left_out_is_the_pages_own() -> None:
    assert page_address("0.0.0.0") == Address("0.0.0.0", 8080)
    with pytest.raises(UsageError, match="--web"):
        page_address("http://x:1")


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
