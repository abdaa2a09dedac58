# SPDX-License-Identifier: Apache-2.0
"""From windows to clips to figures: metrics, bootstrap intervals, calibration."""
