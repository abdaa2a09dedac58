# SPDX-License-Identifier: Apache-2.0
"""Judge sources as they play: the main command."""
