# SPDX-License-Identifier: Apache-2.0
"""Measurements: each module here is a command that prints a table and writes JSON."""

import runtime  # noqa: F401  before any library that would report to its maker
