# SPDX-License-Identifier: Apache-2.0
"""The trainer's report: a page, its plots, what it is compared with."""
