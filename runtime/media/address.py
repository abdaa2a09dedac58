# SPDX-License-Identifier: Apache-2.0
"""Addresses of network streams: which are allowed, what FFmpeg may open for them, how to name them.

FFmpeg opens anything that an address or a play list names unless it is told otherwise (and a play
list of a stranger may name local files).  So each kind of source has its own list of protocols and
of container formats; none but a local file's has ``file`` in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from runtime.errors import UsageError

_RTSP_FORMATS = "rtsp,sdp,rtp,mpegts"
_HTTP_PROTOCOLS = "http,https,tcp,tls,crypto"  # crypto: encrypted segments of HLS
_HTTP_FORMATS = (
    "hls,mpegts,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,flv,ogg,mp3,aac,wav,mpjpeg,mpegvideo,h264,"
    "hevc"
)


@dataclass(frozen=True)
class Access:
    """What FFmpeg may use to read from an address: comma-separated names, as it takes them."""

    protocols: str
    formats: str


ACCESS = {
    "rtsp": Access("rtsp,rtp,rtcp,udp,tcp", _RTSP_FORMATS),
    "rtsps": Access("rtsp,rtsps,rtp,rtcp,srtp,udp,tcp,tls", _RTSP_FORMATS),
    "http": Access(_HTTP_PROTOCOLS, _HTTP_FORMATS),
    "https": Access("https,tls,tcp,crypto", _HTTP_FORMATS),  # no way back to http
}
_SECRET = re.compile(r"(?i)\b(user(?:name)?|pass(?:word|wd)?|pwd|token|secret|key|auth)=[^&/;]*")


def scheme_of(source: str) -> str | None:
    """``RTSP://host`` -> ``rtsp``; None: not an address."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    return found[1].lower() if found else None


def check_address(url: str) -> Access:
    """Raises :class:`UsageError` for a scheme that is not supported, or without a host."""
    scheme = scheme_of(url)
    if scheme not in ACCESS:
        raise UsageError(
            f"{scheme}:// sources are not supported; give rtsp://, rtsps://, http://, https://, "
            "csi://, a file, a folder, a glob or camera"
        )
    try:
        host = urlsplit(url).hostname
        _ = urlsplit(url).port
    except ValueError:
        host = None
    if not host:
        raise UsageError(
            f"{public_name(url)}: not an address: it needs a host, and a port is a number"
        )
    return ACCESS[scheme]


def public_name(source: str) -> str:
    """The source as it may be shown: without user, password, query and fragment.

    ``rtsp://admin:pw@cam/live?token=x`` -> ``rtsp://cam/live``.  What is no address is itself.
    """
    if scheme_of(source) is None:
        return source
    scheme, rest = source.split("://", 1)
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if "@" in path and "@" not in host:  # a password with a slash in it: everything before is one
        host, slash, path = path.rpartition("@")[2].partition("/")
    host = host.rpartition("@")[2]
    shown = _SECRET.sub(r"\1=…", path)
    return f"{scheme.lower()}://{host}{slash}{shown}"
