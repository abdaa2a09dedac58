# SPDX-License-Identifier: Apache-2.0
"""What ``/api/state`` and ``/healthz`` answer, as JSON Schema (draft 2020-12).

Every object is closed: a field that is not written down here is an error in the tests.
"""

from __future__ import annotations

from typing import Any

from runtime.judging.verdict import Label, Reason
from runtime.spec import SCHEMA_VERSION
from runtime.web.sink import KEPT_VERDICTS, STATE_VERSION

Schema = dict[str, Any]


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _map(values: Schema, keys: list[str] | None = None) -> Schema:
    """An object that has some of ``keys``; None: any."""
    names = {} if keys is None else {"propertyNames": {"enum": keys}}
    return {"type": "object", "additionalProperties": values, **names}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
STATUS: Schema = {"enum": ["live", "ended"]}

VERDICT = _object(
    n={"type": "integer", "minimum": 1},
    schema_version={"const": SCHEMA_VERSION},
    source=TEXT,
    model_id=TEXT,
    t_start_s=NUMBER,
    t_end_s=NUMBER,
    face_id=_or_null({"type": "integer"}),
    p_fake=_or_null(SHARE),
    p_fake_video=_or_null(SHARE),
    p_fake_audio=_or_null(SHARE),
    sync=_or_null({"type": "number", "minimum": -1, "maximum": 1}),
    av_offset_ms=_or_null(NUMBER),
    label={"enum": [str(label) for label in Label]},
    reason={"enum": [*(str(reason) for reason in Reason), None]},
    latency_ms=NUMBER,
    shown={"type": "array", "items": _or_null(SHARE), "minItems": 3, "maxItems": 3},
)

SOURCE = _object(
    status=STATUS,
    live=FLAG,
    t_s=NUMBER,
    size=_or_null({"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2}),
    has_video=_or_null(FLAG),
    has_audio=_or_null(FLAG),
    pictures_per_s=_or_null(NUMBER),
    level_dbfs=_or_null(NUMBER),
    windows=COUNT,
    labels=_object(**{str(label): COUNT for label in Label}),
    reasons=_map(COUNT, [str(reason) for reason in Reason]),
    coverage=_or_null(SHARE),
    latency_ms=_or_null(_object(p50=NUMBER, p99=NUMBER, of=COUNT)),
    av_offset_ms=_or_null(NUMBER),
    drops=_map(COUNT),  # by cause; live sources have causes of their own
    warnings={"type": "array", "items": TEXT},
    verdicts={"type": "array", "items": VERDICT, "maxItems": KEPT_VERDICTS},
)

STATE = _object(
    state_version={"const": STATE_VERSION},
    model_id=TEXT,
    provider=TEXT,
    judged_by=TEXT,
    trained=FLAG,
    sources=_map(SOURCE),
    browser={"enum": ["none", "waiting", "connecting", "in_use", "away", "ended"]},
)

HEALTH = _object(status={"const": "ok"}, sources=_map(STATUS))
