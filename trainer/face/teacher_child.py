# SPDX-License-Identifier: Apache-2.0
"""FaceMesh in its own environment: pictures in, landmarks out, over pipes.

Run by :mod:`trainer.face.teacher` with the Python of an environment that holds mediapipe; nothing
of this project is imported here.  A request is four little-endian uint32 (height, width, 1 for a
still picture, 1 to forget the face before) and the RGB bytes; the answer is one uint8 (faces found,
0 or 1), one float32 (the detector's score where it looked, NaN where the mesh followed the face by
itself) and 478 x 3 float32 in MediaPipe's units: x as a share of the width, y of the height, z of
the width.  A height of 0 ends it.

``refine_landmarks``: the mesh with attention to lips and eyes (Grishchenko et al., 2020).  The
models are in the wheel.  The process has no network where the kernel allows to take it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import struct
import sys
from typing import Any, BinaryIO

LANDMARKS = 478
REQUEST = struct.Struct("<4I")
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


def leave_the_network() -> None:
    """A network namespace of its own, which holds nothing; only Linux has them."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            unshare = ctypes.CDLL(None, use_errno=True).unshare
            if unshare(CLONE_NEWNET) != 0:
                unshare(CLONE_NEWUSER | CLONE_NEWNET)


def face_mesh(still: bool) -> Any:
    """MediaPipe's solution, which gives the detections besides."""
    face_mesh = importlib.import_module("mediapipe.python.solutions.face_mesh")
    base = importlib.import_module("mediapipe.python.solution_base")
    return base.SolutionBase(
        binary_graph_path=face_mesh._BINARYPB_FILE_PATH,
        side_inputs={"num_faces": 1, "with_attention": True, "use_prev_landmarks": not still},
        calculator_params={
            "facedetectionshortrangecpu__facedetectionshortrange__facedetection__"
            "TensorsToDetectionsCalculator.min_score_thresh": 0.5,
            "facelandmarkcpu__ThresholdingCalculator.threshold": 0.5,
        },
        outputs=["multi_face_landmarks", "face_detections"],
    )


def answer(mesh: Any, picture: Any) -> bytes:
    import numpy as np

    result = mesh.process(picture)
    faces, seen = result.multi_face_landmarks, result.face_detections
    score = max((d.score[0] for d in seen), default=float("nan")) if seen else float("nan")
    points = np.zeros((LANDMARKS, 3), "<f4")
    if faces:
        points[:] = [(p.x, p.y, p.z) for p in faces[0].landmark]
    return struct.pack("<Bf", bool(faces), score) + points.tobytes()


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    import numpy as np

    meshes: dict[bool, Any] = {}
    with contextlib.suppress(EOFError):
        while True:
            height, width, still, new = REQUEST.unpack(read_exactly(requests, REQUEST.size))
            if not height:
                break
            data = read_exactly(requests, height * width * 3)
            if bool(still) not in meshes:
                meshes[bool(still)] = face_mesh(bool(still))
            mesh = meshes[bool(still)]
            if new:
                mesh.reset()
            picture = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            answers.write(answer(mesh, picture))
            answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what mediapipe prints must not get among the answers
    leave_the_network()
    version = importlib.import_module("mediapipe").__version__
    answers.write(f"mediapipe {version}\n".encode())
    answers.flush()
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
