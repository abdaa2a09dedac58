# SPDX-License-Identifier: Apache-2.0
"""The two custom ops: every form of them, timed and inspected."""
