# SPDX-License-Identifier: Apache-2.0
"""Where the two graphs run.  :mod:`base` is the protocol; every other module is one backend."""

from runtime.backends.base import Backend, FusionOutput

__all__ = ["Backend", "FusionOutput"]
