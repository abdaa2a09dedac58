# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds beside its checkpoint: the state to resume from, the log, and under
which circumstances each start took place.

The state is one safetensors file, written whole or not at all.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime import leftovers
from runtime.errors import ModelError, UserError
from runtime.files import write_json
from runtime.optional import optional

STATE = "state.safetensors"
ENVIRONMENT = "environment.json"
LOG = "log.jsonl"
PACKAGES = ("torch", "numpy", "opencv-python-headless", "safetensors", "scikit-learn", "scipy")


def save_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Raises UserError where it cannot be written; an earlier state stays as it is."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    values = {k: json.dumps(v, sort_keys=True) for k, v in facts.items()}
    try:
        with leftovers.part_of(path) as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, values)
    except (OSError, SafetensorError) as err:
        kept = "the state before it is intact" if path.is_file() else "nothing was saved before"
        raise UserError(
            f"cannot write {path} ({_reason(err)}); {kept}: make room, then give the "
            "same command again (trainer.fit: with --resume)"
        ) from err


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises ModelError for a file that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            return {k: file.get_tensor(k) for k in file.keys()}, facts  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as err:
        raise ModelError(
            f"{path} cannot be read ({_reason(err)}); "
            "delete it to begin anew, or use another folder"
        ) from err


def _reason(err: Exception) -> str:
    """Of a failed write or read: safetensors hides the system's words in its own."""
    return (getattr(err, "strerror", None) or str(err)).splitlines()[0]


def remove_leftovers(folder: Path) -> None:
    """Parts of files that a killed process was writing."""
    for part in (*folder.glob(".*.part"), *folder.glob(".*.tmp")):
        part.unlink(missing_ok=True)


class Log:
    """``log.jsonl``, and TensorBoard if asked for.  Rows of steps that are done again go first."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        path = folder / LOG
        kept = [line for line in _lines(path) if _step_of(line) <= step]
        path.write_text("".join(kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board = _board(folder / "tensorboard", step) if tensorboard else None

    def row(self, values: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if self.board is not None:
            step = values["step"]
            scores = values.get("validation", {})
            group = "validation" if scores else values.get("stage", "run")
            for name, value in (scores or values).items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def require_tensorboard() -> None:
    with optional("for its curves", extra="tensorboard"):
        import torch.utils.tensorboard  # noqa: F401


def _board(folder: Path, step: int) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def record_start(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add this start to ``environment.json``: versions, commit, machine, command line."""
    path = folder / ENVIRONMENT
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    here = {
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "commit": _commit(),
        **facts,
    }
    write_json(path, {"starts": [*starts, here]})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """Of the repository that this file lies in, with "+" where it has changes; None: no git."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("describe", "--always") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """Leaves the index as it is, which ``describe --dirty`` would write anew."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
