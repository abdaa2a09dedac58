# SPDX-License-Identifier: Apache-2.0
"""The process in which a file is decoded, away from the one that judges.

A file of unknown origin goes through a million lines of C (FFmpeg).  Here a crash takes nothing
with it but this process, what it may use has limits (:func:`confine`), and where the kernel has
Landlock it reads that file and nothing else of anybody's (:func:`shut_in`).  The other end is
:class:`runtime.media.sandbox.reader.IsolatedFile`, which starts it and believes nothing that comes.

What goes over standard output, message by message: the length of a header (uint32, little endian),
the header (JSON), and as many bytes of pixels or samples as its ``size`` says.

========= ====================================================================================
``kind``  the rest of the header
========= ====================================================================================
info      ``info``: the fields of MediaInfo; ``sound``: index and zero_s, or null
video     ``t_s``, ``shape`` [H, W, 3] of uint8, ``damaged`` so far
audio     ``t_s``, float32 samples, ``damaged`` so far
format    ``codec``, ``sample_rate_hz``, ``layout``, ``time_base`` [n, d], and the codec's header
packet    ``pts``, ``dts``, ``duration``, and sound as it is in the file
end       ``damaged``, ``warnings``
error     ``error``: the name of the class, ``message``
========= ====================================================================================

Standard input is only watched: when it ends, whoever started this is gone, and so is this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MediaError, UserError
from runtime.media import VideoChunk
from runtime.media.file import FileSource
from runtime.media.picking import Tracks
from runtime.media.sandbox import landlock

LENGTH = struct.Struct("<I")
OPEN_FILES = 64  # a file, the pipes, what is open already
Array = NDArray[np.uint8] | NDArray[np.float32]


def confine(memory_mb: int) -> None:
    """From here on: so much memory more, nothing written to files, no core dump, few open files.

    The limit on memory is Linux's alone (address space; other systems do not keep to one).
    """
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)]
    limits.append((resource.RLIMIT_NOFILE, OPEN_FILES))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            has = int(file.read().split()[0]) * resource.getpagesize()
        limits.append((resource.RLIMIT_AS, has + memory_mb * 1_000_000))
    for what, most in limits:
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def shut_in(path: Path) -> None:
    """From here on: this file alone, and Python's own where something is imported late."""
    import av

    own = [Path(file).parent for file in (os.__file__, np.__file__, av.__file__, __file__)]
    libraries = [folder.with_name(f"{folder.name}.libs") for folder in own]
    landlock.restrict([path, *own, *(folder for folder in libraries if folder.is_dir())])


def send(out: BinaryIO, kind: str, data: Array | None = None, **fields: Any) -> None:
    size = 0 if data is None else data.nbytes
    header = json.dumps({"kind": kind, "size": size, **fields}).encode("ascii")
    out.write(LENGTH.pack(len(header)) + header)
    if data is not None:
        out.write(np.ascontiguousarray(data).data.cast("B"))
    out.flush()


def decode(path: str, name: str, sample_rate_hz: int, tracks: Tracks, out: BinaryIO) -> None:
    """Everything that :class:`FileSource` finds, picture by picture in its RGB form."""
    with FileSource(path, name=name, sample_rate_hz=sample_rate_hz, tracks=tracks) as source:
        sound = source.original_sound
        where = None if sound is None else {"index": sound.stream_index, "zero_s": sound.zero_s}
        send(out, "info", info=dataclasses.asdict(source.info), sound=where)
        for chunk in source:
            if isinstance(chunk, VideoChunk):
                frame = chunk.frame
                send(out, "video", frame, t_s=chunk.t_s, shape=frame.shape, damaged=source.damaged)
            else:
                send(out, "audio", chunk.samples, t_s=chunk.t_s, damaged=source.damaged)
        send(out, "end", damaged=source.damaged, warnings=source.warnings)


def copy_sound(path: str, name: str, index: int, out: BinaryIO) -> None:
    """The sound in one stream as it is, packet by packet."""
    with FileSource(path, name=name) as source:
        send(out, "info", info=dataclasses.asdict(source.info), sound=None)
        form = source.sound_format(index)
        send(
            out, "format", _bytes(form.extra), codec=form.codec, layout=form.layout,
            sample_rate_hz=form.sample_rate_hz, time_base=form.time_base.as_integer_ratio(),
        )  # fmt: skip
        for packet in source.sound_packets(index):
            times = {"pts": packet.pts, "dts": packet.dts, "duration": packet.duration}
            send(out, "packet", _bytes(packet.data), **times)
        send(out, "end", damaged=0, warnings=source.warnings)


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)


def main() -> None:
    """Arguments: path, what to call it, MB of memory, then ``decode``, a rate in Hz and which
    tracks, or ``copy`` and the number of the sound's stream."""
    path, name, memory, what, number, *tracks = sys.argv[1:]
    memory_mb = int(memory)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no message
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        from runtime.media.decoding import import_av

        import_av()  # before the limits: what it maps is not the file's
        confine(memory_mb)
        shut_in(Path(path))
        if what == "decode":
            decode(path, name, int(number), Tracks(*json.loads(tracks[0])), out)
        else:
            copy_sound(path, name, int(number), out)
    except BrokenPipeError:  # nobody listens any more
        pass
    except MemoryError:
        err = MediaError(f"{name}: takes more than {memory_mb} MB to decode")
        _say(out, err, str(err))
    except UserError as err:
        _say(out, err, str(err))
    except Exception as err:  # a fault of ours: with all that is known of it
        _say(out, err, traceback.format_exc())
    os._exit(0)  # threads of a decoder may hang


def _say(out: BinaryIO, err: BaseException, message: str) -> None:
    with contextlib.suppress(OSError):  # nobody may listen any more
        send(out, "error", error=type(err).__name__, message=message)


def _end_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)
