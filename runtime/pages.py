# SPDX-License-Identifier: Apache-2.0
"""HTML out of a template beside the module that fills it; whatever is filled in is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.optional import optional


def fill(template: Path, **values: Any) -> str:
    """Raises :class:`runtime.errors.DependencyError` without jinja2."""
    with optional("to write a page"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
