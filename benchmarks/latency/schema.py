# SPDX-License-Identifier: Apache-2.0
"""The form of a latency result: ``schema.json``, JSON Schema 2020-12."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.optional import installed

SCHEMA_FILE = Path(__file__).with_name("schema.json")
SCHEMA_VERSION = 1


class SchemaError(UserError):
    """A result that is not what the schema promises."""


def check(result: dict[str, Any]) -> str:
    """Raises :class:`SchemaError` for a result against the schema; says if it could not look."""
    if not installed("jsonschema"):
        return "not checked against the schema: jsonschema is not installed"
    jsonschema: Any = importlib.import_module("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8")))
    error = jsonschema.exceptions.best_match(validator.iter_errors(result))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the whole"
        raise SchemaError(f"the result does not fit {SCHEMA_FILE.name}: {where}: {error.message}")
    return ""
