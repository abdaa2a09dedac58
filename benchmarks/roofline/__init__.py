# SPDX-License-Identifier: Apache-2.0
"""A prediction from data sheets: operations and bytes of a hop."""
