# SPDX-License-Identifier: Apache-2.0
"""A model folder on disk: written as a whole or not at all, and its ``manifest.json``.

The manifest lies beside the pair and says what the files are: SHA-256 and size of each, backend,
precision, the spec (a copy for people and for engines; an ONNX file's own metadata is what the
runtime reads) and what was measured when they were made.  It holds no time and no path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime import interrupt, leftovers
from runtime.backends.manifest import MANIFEST_FILE, read_manifest
from runtime.errors import ModelError, UserError
from runtime.spec import PairSpec

MANIFEST_VERSION = 1


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A private folder to write in; its files move into ``target`` when the block ends well.

    A new ``target`` appears in one rename.  In one that exists each file is replaced by one
    rename, the manifest last; files that only the old manifest lists go, others (a model card)
    stay.  A crash in between leaves files that the runtime refuses, never half a file.

    Raises :class:`UserError` if nothing can be written there.
    """
    try:
        if target.exists() and not target.is_dir():
            raise UserError(f"cannot write to {target}: it is a file; give another --output folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.folder(f".{target.name}-", target.parent) as staging:
            yield staging
            interrupt.check()
            with leftovers.unbroken():
                _publish(staging, target)
    except OSError as err:
        raise _unwritable(target, err) from err


def _publish(staging: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    staging.chmod(0o777 & ~umask)  # mkdtemp made it private
    if not target.exists():
        staging.rename(target)
        return
    stale = _listed(target) - {path.name for path in staging.iterdir()}
    for path in sorted(staging.iterdir(), key=lambda p: (p.name == MANIFEST_FILE, p.name)):
        path.replace(target / path.name)
    for name in stale:
        (target / name).unlink(missing_ok=True)


def _listed(folder: Path) -> set[str]:
    """Names that the folder's manifest lists; none where it cannot be read."""
    try:
        return {name for name in read_manifest(folder)["files"] if Path(name).name == name}
    except ModelError:
        return set()


def _unwritable(target: Path, err: OSError) -> UserError:
    return UserError(f"cannot write to {target} ({err.strerror}); give another --output folder")


def write_manifest(
    folder: Path, names: tuple[str, ...], spec: PairSpec, facts: Mapping[str, Any]
) -> Path:
    """Hash the named files of ``folder`` and write its manifest; ``facts`` are added on top."""
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "model_id": spec.model_id,
        "pair_id": spec.pair_id,
        "precision": spec.precision,
        "trained": spec.trained,
        **facts,
        "files": {name: file_facts(folder / name) for name in names},
        "spec": json.loads(spec.to_json()),
    }
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return path


def file_facts(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def check_writable(path: Path) -> None:
    """Raise :class:`UserError` now if ``path`` could not be written at the end of a long run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as err:
        raise UserError(f"cannot write {path} ({err.strerror}); give another path") from err
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the path of a file")
