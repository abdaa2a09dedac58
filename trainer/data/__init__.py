# SPDX-License-Identifier: Apache-2.0
"""Clips in, training windows out: reading, writing, layouts on disk, the prepared set."""
