# SPDX-License-Identifier: Apache-2.0
"""Training: data, forgery, the network, losses and metrics.  Never imported by the runtime."""
