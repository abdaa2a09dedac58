# SPDX-License-Identifier: Apache-2.0
"""Calibration on site: what a place's own genuine footage says of offset and threshold."""
