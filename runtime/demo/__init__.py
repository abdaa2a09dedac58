# SPDX-License-Identifier: Apache-2.0
"""The first minute: a clip, a model, a verdict."""
