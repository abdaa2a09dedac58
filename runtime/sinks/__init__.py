# SPDX-License-Identifier: Apache-2.0
"""Where verdicts go: terminal, JSON Lines, report, video, metrics, webhook."""
