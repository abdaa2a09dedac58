# SPDX-License-Identifier: Apache-2.0
"""What another precision changes in the verdicts of a stream."""
