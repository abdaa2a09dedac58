# SPDX-License-Identifier: Apache-2.0
"""The same training steps by one process and by two that share each batch (gloo, on a CPU).

python tests/trainer/fit_together.py SET FOLDER      # a .npz for each process of each case
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401  imported here so that no child has to
import torch
import torch._dynamo

from runtime.errors import UserError
from tests.trainer.fit_process import FIT, MODEL
from trainer.config import preset
from trainer.data.prepared import PreparedSet
from trainer.fit import FitConfig, train
from trainer.loop.distributed import Group, run_together
from trainer.loop.run import Trainer

# Many windows lack a modality: the processes' sums of weights differ.
COMMON: dict[str, Any] = {**FIT, "batch": 8, "modality_dropout": 0.6, "frozen_norm": True}
CASES: dict[str, dict[str, Any]] = {
    "align": {"align_steps": 3, "joint_steps": 0},
    "joint": {"align_steps": 0, "joint_steps": 3},
    "parts": {"align_steps": 0, "joint_steps": 3, "accumulate": 2},
    "own-statistics": {"align_steps": 0, "joint_steps": 3, "frozen_norm": False},
}


def steps(data: Path, out: Path, case: str, group: Group) -> int:
    config = FitConfig(**{**COMMON, **CASES[case]})
    model = preset("msct-tiny", **{**MODEL, "dropout": 0.0})
    trainer = Trainer(config, model, PreparedSet(data), out.parent, group=group)
    arrays: dict[str, Any] = {}
    for number in range(3):
        for name, value in trainer.train_step().items():
            arrays[f"{number}/{name}"] = value
        for name, p in trainer.model.named_parameters():
            if p.grad is not None:
                arrays[f"gradient/{number}/{name}"] = p.grad.numpy().copy()
    arrays |= {f"weight/{k}": v.numpy() for k, v in trainer.model.state_dict().items()}
    arrays |= {f"average/{k}": v.numpy() for k, v in trainer.average.state_dict().items()}
    np.savez(out, **arrays)
    return 0


def whole(data: Path, folder: Path, group: Group) -> int:
    config = FitConfig(**{**COMMON, "modality_dropout": 0.1})
    train(config, preset("msct-tiny", **MODEL), PreparedSet(data), folder, group=group)
    return 0


def fails(group: Group) -> int:
    """The second process meets an error while the first waits for it."""
    if group.rank == 1:
        raise UserError("the disk of this process is full")
    group.mean(torch.zeros(1))
    return 0


def together(size: int, work: Any, log: Path) -> list[int]:
    """Exit codes of ``size`` processes; what they print on standard error goes to ``log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                torch.set_num_threads(1)
                code = run_together("cpu", work, "trainer.fit")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(data: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "stderr.txt"
    for case in CASES:
        for size in (1, 2):

            def work(group: Group, case: str = case, size: int = size) -> int:
                return steps(data, folder / f"{case}-{size}-{group.rank}.npz", case, group)

            codes = together(size, work, log)
            assert codes == [0] * size, (case, codes, log.read_text())
    codes = together(2, lambda group: whole(data, folder / "run", group), log)
    assert codes == [0, 0], (codes, log.read_text())
    print("codes", together(2, fails, folder / "failure.txt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
