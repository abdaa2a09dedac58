# SPDX-License-Identifier: Apache-2.0
"""Training: data, forgery, the network, losses and metrics.  Never imported by the runtime."""

import os

import runtime  # noqa: F401  before any library that would report to its maker

# Torch's OpenMP threads sleep while they wait for each other.  By default they spin, for longer
# than a time slice lasts: where something else wants the cores too, a step of 0.8 s took 12 s.
# It is read when torch is loaded; a value that is set already stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
