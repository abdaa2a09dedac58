# SPDX-License-Identifier: Apache-2.0
"""The network.  Start reading at :mod:`trainer.model.msct`."""

from trainer.model.msct import MSCT, FrameEncoder, Fusion, FusionOutput, TrainingOutput

__all__ = ["MSCT", "FrameEncoder", "Fusion", "FusionOutput", "TrainingOutput"]
