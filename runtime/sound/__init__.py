# SPDX-License-Identifier: Apache-2.0
"""Sound as the model hears it: tokens, on the stream's clock."""
