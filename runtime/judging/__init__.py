# SPDX-License-Identifier: Apache-2.0
"""What a window's scores mean: offset, speaker, decision, verdict."""
