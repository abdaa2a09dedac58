# SPDX-License-Identifier: Apache-2.0
"""An archive of clips, judged by many processes."""
