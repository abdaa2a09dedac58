# SPDX-License-Identifier: Apache-2.0
"""From chunks of a source to verdicts: sessions, the calls of the model, the driver of streams."""
