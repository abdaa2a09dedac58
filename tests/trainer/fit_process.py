# SPDX-License-Identifier: Apache-2.0
"""A tiny training run in processes of its own: killed, out of disk, or two that train together.

    python tests/trainer/fit_process.py SET FOLDER       # JSON lines: what came of each child

Torch is imported once, in one thread, then each run is a fork: a run takes a second, not ten.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import rich.progress  # noqa: F401  imported here so that no child has to
import scipy.signal
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch
import torch._dynamo

from trainer.config import preset
from trainer.data.prepared import PreparedSet
from trainer.fit import FitConfig, train
from trainer.loop import state
from trainer.loop.run import Trainer
from trainer.model import checkpoint

MODEL = {
    "channels": 32,
    "blocks": 1,
    "align_dim": 16,
    "crop_px": 32,
    "backbone": {
        "stem_channels": 8,
        "widths": (4, 4, 4, 4),
        "outputs": (16, 16, 16, 16),
        "cbam_reduction": 4,
        "pooling": "mean",
    },
}
FIT = {
    "align_steps": 2,
    "joint_steps": 6,
    "batch": 4,
    "window_tokens": 30,
    "threads": 1,
    "validate_every": 3,
    "save_every": 2,
    "warmup": 1,
}


def run(data: Path, folder: Path, **values: Any) -> dict[str, Any]:
    model = preset("msct-tiny", **MODEL)
    return train(FitConfig(**{**FIT, **values}), model, PreparedSet(data), folder)


def in_child(work: Callable[[], Any]) -> tuple[int, str]:
    """(wait status, what it printed as its error)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            code = 0
        except BaseException as err:
            os.write(write, f"{type(err).__name__}: {err}".encode()[:4000])
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], text


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at_step(step: int) -> None:
    real = Trainer.train_step

    def train_step(self: Trainer, batch: Any = None) -> dict[str, float]:
        if self.progress.step == step:
            die()
        return real(self, batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def dies_in_save(number: int) -> None:
    """Half of the ``number``-th state is written, then nothing more."""
    import safetensors.torch

    real, calls = safetensors.torch.save_file, [0]

    def save_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        real(tensors, filename, metadata)
        calls[0] += "state" in str(filename)
        if "state" in str(filename) and calls[0] == number:
            os.truncate(filename, Path(filename).stat().st_size // 2)
            die()

    safetensors.torch.save_file = save_file


def dies_before_the_rename() -> None:
    """The best weights of the first validation are complete, under their temporary name."""
    real = checkpoint.save_file

    def save_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        real(tensors, filename, metadata)
        die()

    checkpoint.save_file = save_file


def dies_at_the_end() -> None:
    from trainer.loop import run as module

    module.write_json = lambda path, value: die() if path.name == "metrics.json" else None


KILLS: dict[str, Callable[[], None]] = {
    "before the first state": lambda: dies_at_step(1),
    "between two states": lambda: dies_at_step(5),
    "in the first save": lambda: dies_in_save(1),
    "in the second save": lambda: dies_in_save(2),
    "while the best weights are saved": dies_before_the_rename,
    "after the last step": dies_at_the_end,
}


def full_disk(data: Path, folder: Path) -> None:
    """From the second state on nothing longer than the log can be written."""
    real = state.save_state

    def save_state(path: Path, *rest: Any) -> None:
        if path.is_file():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        real(path, *rest)

    import trainer.loop.loop as module

    module.save_state = save_state
    run(data, folder)


def digest(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "metrics.json").read_text())
    log = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    for row in log:
        row.pop("s", None)
    tensors, _ = state.load_state(folder / "state.safetensors")
    last = hashlib.sha256(b"".join(tensors[k].numpy().tobytes() for k in sorted(tensors)))
    return {"last": last.hexdigest(), "metrics": result, "log": log}


def main(data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    whole = in_child(lambda: run(data, folder / "whole"))
    print(json.dumps({"name": "whole", "status": whole, **digest(folder / "whole")}), flush=True)
    for number, (name, prepare) in enumerate(KILLS.items()):
        place = folder / str(number)

        def killed(prepare: Callable[[], None] = prepare, place: Path = place) -> None:
            prepare()
            run(data, place)

        first = in_child(killed)
        again = in_child(lambda place=place: run(data, place))
        left = sorted(p.name for p in place.iterdir())
        out = {"name": name, "first": first, "again": again, "files": left, **digest(place)}
        print(json.dumps(out), flush=True)
    place = folder / "full"
    first = in_child(lambda: full_disk(data, place))
    left = sorted(p.name for p in place.iterdir())
    again = in_child(lambda: run(data, place))
    out = {"name": "full disk", "first": first, "again": again, "files": left, **digest(place)}
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
