# SPDX-License-Identifier: Apache-2.0
"""Files are decoded in a process that can do nothing else."""
