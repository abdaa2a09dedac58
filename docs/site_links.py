# SPDX-License-Identifier: Apache-2.0
"""A hook of MkDocs: links to files outside the pages, which a site does not have, become names.

``[JSON](../benchmarks/results/x.json)`` is a link where the repository is read, and
"JSON (``benchmarks/results/x.json``)" on the site.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        picture, text, target, _ = link.groups()
        if re.match(r"\w+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        inside = path.startswith("docs/") and not path.startswith("docs/deploy/")
        if inside and path != "docs/adr":
            return link[0]
        return f"{text} (`{path}`)" if not picture else f"`{path}`"

    return _LINK.sub(shown, markdown)
