# SPDX-License-Identifier: Apache-2.0
"""From weights to the files that a device runs.  Only :mod:`export.graphs` needs torch."""

import runtime  # noqa: F401  before any library that would report to its maker
