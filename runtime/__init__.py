# SPDX-License-Identifier: Apache-2.0
"""The part that ships to a device: media in, verdicts out.  Importing it needs only NumPy."""
