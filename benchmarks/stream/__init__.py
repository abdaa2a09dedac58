# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of whole streams, one or many."""
