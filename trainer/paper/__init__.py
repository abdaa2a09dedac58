# SPDX-License-Identifier: Apache-2.0
"""The paper's own experiments: ablation arms, tables, published figures, baselines."""
