# SPDX-License-Identifier: Apache-2.0
"""Hours of one live stream, with its server."""
