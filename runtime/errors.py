# SPDX-License-Identifier: Apache-2.0
"""Errors meant for people.  Each message is one line: what is wrong, and what to do about it.

Exit codes of every command line here: 0 done, 1 operational error, 2 usage, 3 every window
abstained, 4 a fake was found and ``--fail-on-fake`` was given, 130 interrupted by a signal.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_ALL_ABSTAINED = 3
EXIT_FAKE = 4
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """Base of what a person can put right; command lines print it without a traceback."""

    exit_code = EXIT_ERROR


class UsageError(UserError):
    """A wrong option, an unknown preset, a source that does not exist."""

    exit_code = EXIT_USAGE


class MediaError(UserError):
    """A source that cannot be opened, decoded or read to its end."""


class ModelError(UserError):
    """A model file that is missing, damaged, untrusted or not one of a pair."""


class DependencyError(UserError):
    """An optional part is not installed; the message names the extra to install."""
