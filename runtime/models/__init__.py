# SPDX-License-Identifier: Apache-2.0
"""Where models are: the presets shipped in this folder, or any folder with a pair in it.

A shipped preset is ``runtime/models/<name>/`` with the two ONNX files and its model card.
"""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UsageError
from runtime.spec import FRAME_ENCODER_FILE, FUSION_FILE

PRESETS = ("msct", "msct-tiny")  # all that the trainer knows; some ship no weights
DEFAULT_PRESET = "msct-tiny"
_HERE = Path(__file__).resolve().parent


def has_pair(folder: Path) -> bool:
    """Are both ONNX files in this folder?"""
    return all((folder / name).is_file() for name in (FRAME_ENCODER_FILE, FUSION_FILE))


def shipped_presets() -> list[str]:
    """Names of the presets that came with weights, sorted."""
    return sorted(folder.name for folder in _HERE.iterdir() if has_pair(folder))


def is_shipped(folder: Path) -> bool:
    """Does it lie beside this file, and is as trustworthy as the code?"""
    return folder.resolve().parent == _HERE


def model_dir(name_or_path: str | Path) -> Path:
    """Folder of a shipped preset's name, or the given folder itself.

    A preset's name wins over a folder of that name in the working directory; write ``./name`` for
    the folder.  Raises :class:`UsageError` if there is no such preset or folder, or no pair in it.
    """
    name = str(name_or_path)
    presets = shipped_presets()
    if name in presets:
        return _HERE / name
    folder = Path(name_or_path)
    if folder.exists():
        return model_folder(folder)
    if name in PRESETS:
        raise UsageError(
            f"preset {name} ships no weights; train it (python -m trainer.fit --preset {name}) and "
            "give the folder that python -m export.build_engine --checkpoint writes"
        )
    known = ", ".join(presets) or "none"
    raise UsageError(
        f"no model named {name!r} and no such folder; shipped presets: {known}; other "
        "models are made with python -m export.build_engine --output FOLDER"
    )


def model_files(name_or_path: str | Path | None) -> list[Path]:
    """What lies in the folder of :func:`model_dir`, as far as there is one; None: the default."""
    name = str(name_or_path or DEFAULT_PRESET)
    folder = _HERE / name if name in shipped_presets() else Path(name)
    return list(folder.iterdir()) if folder.is_dir() else []


def model_folder(folder: Path) -> Path:
    """The folder itself; raises :class:`UsageError` unless it is one with a pair in it."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file; give the folder with {FRAME_ENCODER_FILE} in it")
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    if not has_pair(folder):
        raise UsageError(
            f"no model in {folder}: it needs {FRAME_ENCODER_FILE} and {FUSION_FILE}; "
            "make them with python -m export.build_engine --output FOLDER"
        )
    return folder
