# SPDX-License-Identifier: Apache-2.0
"""An RTSP server: GStreamer's, with Debian's Python (gir1.2-gst-rtsp-server-1.0).

    /usr/bin/python3 rtsp_server.py CLIP.mp4 PORT

serves CLIP (H.264, and AAC if it has sound) at ``rtsp://127.0.0.1:PORT/live``, one stream shared by
all clients, and prints ``ready`` once clients can come.  It ends with its standard input.
``--mute`` leaves the sound out; ``--lose SHARE`` loses that share of all packets.
"""

from __future__ import annotations

import re
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

# alignment=au: else a picture of several slices is sent as several
WHOLE = "h264parse config-interval=-1 ! video/x-h264,alignment=au"
VIDEO = f"demux. ! queue ! {WHOLE} ! rtph264pay name=pay0 pt=96"
AUDIO = "demux. ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97"


def main(clip: str, port: str, *options: str) -> None:
    Gst.init(None)
    loop = GLib.MainLoop()
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    tracks = VIDEO if "--mute" in options else f"{VIDEO} {AUDIO}"
    if "--lose" in options:
        share = options[options.index("--lose") + 1]
        for track in ("pay0", "pay1"):  # what the server calls so is the last element
            lossy = f"identity drop-probability={share} name={track}"
            tracks = re.sub(f"name={track} (pt=..)", rf"\1 ! {lossy}", tracks)
    factory.set_launch(f"( filesrc location={clip} ! qtdemux name=demux {tracks} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")

    def until_input_ends() -> None:
        sys.stdin.read()
        loop.quit()

    threading.Thread(target=until_input_ends, daemon=True).start()
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
