# SPDX-License-Identifier: Apache-2.0
"""The training loop: run, step, batches, schedule, state, losses, validation."""
