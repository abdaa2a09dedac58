# SPDX-License-Identifier: Apache-2.0
"""Addresses of network streams: which are allowed, what FFmpeg may open for them, how to name them.

FFmpeg opens anything that an address or a play list names unless it is told otherwise (and a play
list of a stranger may name local files).  So each kind of source has its own list of protocols and
of container formats; none but a local file's has ``file`` in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
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
HIDDEN = "…"  # in place of what may not be shown
_SECRET = re.compile(  # a part of a path, as some cameras and shops of clips have them
    r"(?i)\b([\w-]*(?:user|usr|pass|psw|pwd|token|secret|key|auth|sig|session|credential|hmac)[\w-]*"
    r"|pw|sid)(=|%3d)[^&/;]*"
)
_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+\S+")  # two letters: C:/ is a drive
_AFTER_WORD = ".,;:)}'\""  # what a sentence puts behind an address
_HOST_AND_QUERY = re.compile(  # camera.local/live?token, 127.0.0.1:80/x?token, http:camera:80/…
    r"(?:[A-Za-z][\w+.-]*:/*)?(?:\w[\w-]*(?:\.[\w-]+)+(?::\d+)?|[\w.-]+:\d+)/[^?]*\?"
)
_given: dict[str, tuple[re.Pattern[str], str]] = {}  # what hides a secret that was given, and how


def scheme_of(source: str) -> str | None:
    """``RTSP://host`` -> ``rtsp``; None: not an address."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    return found[1].lower() if found else None


def with_plain_scheme(url: str) -> str:
    """``RTSP://Host`` -> ``rtsp://Host``: FFmpeg knows its protocols in small letters alone."""
    scheme, colon, rest = url.partition(":")
    return scheme.lower() + colon + rest


def check_address(url: str) -> Access:
    """Raises :class:`UsageError` for a scheme that is not supported, or without a host."""
    scheme = scheme_of(url)
    if scheme not in ACCESS:
        raise UsageError(
            f"{scheme}:// sources are not supported; give rtsp://, rtsps://, http://, https://, "
            "csi://, a file, a folder, a glob or camera"
        )
    if _host_and_path(url) is None:
        raise UsageError(
            f"{scheme}://{HIDDEN}: not an address: it needs a host, a port is a number, and in "
            "user and password / is written %2F, ? %3F, # %23 and @ %40"
        )
    return ACCESS[scheme]


def public_name(source: str) -> str:
    """The source as it may be shown: without user, password, query and fragment.

    ``rtsp://admin:pw@cam/live?token=x`` -> ``rtsp://cam/live``.  User and password end at the last
    ``@`` of the authority.  Of what cannot be parsed, or may be a password with a ``/`` in it, the
    scheme alone is shown.  What is no address is itself.
    """
    scheme = scheme_of(source)
    if scheme is None:
        return source
    parts = _host_and_path(source)
    if parts is None:
        return f"{scheme}://{HIDDEN}"
    host, path = parts
    before = source.split("://", 1)[1].split("/", 1)[0]
    if ("@" in before or _port(host)) and re.search("[^/]@", path):  # u:12/34@cam is a path, too
        return f"{scheme}://{HIDDEN}"
    shown = _SECRET.sub(lambda found: found[1] + found[2] + HIDDEN, path)
    return f"{scheme}://{host}{shown}"


def remember(given: str) -> None:
    """From now on :func:`without_secrets` hides the secrets of this address wherever they are.

    An address alone can be told from the text around it only as far as the next space, and what a
    path, an option or a message makes of it is no address any more.  A file that is there is none.
    """
    if scheme_of(given) is None and _is_there(given):
        return
    shown = public_name(given) if scheme_of(given) else public_text(given)
    if shown == given:
        return
    rest = re.sub(r"^\s*[A-Za-z][A-Za-z0-9+.-]+:/+", "", given)
    told = shown.rpartition("://")[2] != HIDDEN  # the address could be taken apart
    before, at, _ = (re.split("[/?#]", rest, maxsplit=1)[0] if told else rest).rpartition("@")
    query = re.search(r"\?.+", rest, re.DOTALL)
    found = {given: shown}
    if at:
        found |= {f"{one}@": f"{HIDDEN}@" for one in (before, os.path.normpath(before))}
        folder = before.split("/", 1)[0]
        if folder != before and ":" in folder:  # of a password with a / in it
            found |= {folder: HIDDEN}
    if query:
        found |= {query[0]: f"?{HIDDEN}"}
    for secret, instead in found.items():
        for spelled in (secret, " ".join(secret.split()), repr(secret)[1:-1]):
            if len(spelled) > 1 and spelled not in _given:
                start = r"(?<!\w)" if re.match(r"\w", spelled) else ""
                _given[spelled] = re.compile(start + re.escape(spelled)), instead


def remember_arguments(arguments: Iterable[str]) -> None:
    """The same for what a command was given: ``VALUE`` and ``--option=VALUE``."""
    for argument in arguments:
        remember(argument.partition("=")[2] if argument.startswith("-") else argument)


def without_secrets(text: str) -> str:
    """The text with each address in it as :func:`public_name` shows it.

    A net below everything that is printed: what an exception or a library says may repeat an
    address as it was given.
    """
    for given in sorted(_given, key=len, reverse=True):  # a copy: threads name sources
        pattern, instead = _given[given]
        text = pattern.sub(instead.replace("\\", r"\\"), text)
    return _IN_TEXT.sub(lambda found: _public_word(found[0], found[1]), text)


def public_text(source: str) -> str:
    """What was given as a source and is none, as an error may repeat it: it may be an address with
    a typing error in it."""
    near = _IN_TEXT.search(source)
    if near is not None:
        return f"{near[1].lower()}://{HIDDEN}"
    if re.search(":.*@", source, re.DOTALL):  # user:password@cam/live
        return HIDDEN
    if _HOST_AND_QUERY.match(source):
        return source.split("?", 1)[0] + f"?{HIDDEN}"
    return re.sub(r"\?[^?/]*=.*", f"?{HIDDEN}", source, flags=re.DOTALL)


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in it
        return False


def _host_and_path(url: str) -> tuple[str, str] | None:
    """``host[:port]`` and the path of an address; None: it cannot be parsed."""
    rest = url.split("://", 1)[1]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    behind = rest[len(authority) :]
    if "@" in behind and not behind.startswith("/"):  # a password with ? or # in it
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    host = authority.rpartition("@")[2]
    if not parts.hostname or not host.isprintable() or " " in host:
        return None
    return host, re.split("[?#]", behind, maxsplit=1)[0]


def _port(host: str) -> str:
    return host.rpartition("]")[2].partition(":")[2]


def _public_word(word: str, scheme: str) -> str:
    address = word.rstrip(_AFTER_WORD)
    if address.rstrip("/:").lower() == scheme.lower():  # rtsp:// alone
        return word
    if "://" in address:
        return public_name(address) + word[len(address) :]
    if "@" in address or "?" in address:  # a path made of an address: Path() joins its slashes
        return f"{scheme}://{HIDDEN}{word[len(address) :]}"
    return word
