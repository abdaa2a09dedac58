# SPDX-License-Identifier: Apache-2.0
"""Damaged media, and what becomes of it."""
