# SPDX-License-Identifier: Apache-2.0
"""How long this device takes, call by call and from capture to verdict."""
