# SPDX-License-Identifier: Apache-2.0
"""Reading an ONNX file's own account of itself from its bytes, without any ONNX library.

The messages below are written by hand, field by field, as protobuf's encoding guide says.
"""

from __future__ import annotations

import pytest

from runtime.backends.onnx_file import WireError, read_onnx


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, *parts: bytes | str) -> bytes:
    body = b"".join(p.encode() if isinstance(p, str) else p for p in parts)
    return varint(field << 3 | 2) + varint(len(body)) + body


def opset(domain: str, version: int, field: int = 8) -> bytes:
    return message(field, message(1, domain), number(2, version))


def graph(*parts: bytes) -> bytes:
    return message(7, *parts)


EXTERNAL = message(13, message(1, "location"), message(2, "../../etc/passwd"))


def test_names_operator_sets_and_metadata_are_read() -> None:
    found = read_onnx(
        number(1, 10)  # ir_version
        + graph(
            message(2, "fusion"),
            message(1, message(4, "Cast")),
            message(1, message(4, "MultiScaleKeyConv"), message(7, "msct")),
            message(11, message(1, "visual")),
            message(11, message(1, "audio")),
            message(12, message(1, "sync")),
        )
        + opset("", 18)
        + opset("msct", 1)
        + message(14, message(1, "key"), message(2, "wert ä"))
    )
    assert found.inputs == ["visual", "audio"]
    assert found.outputs == ["sync"]
    assert found.opsets == {"": 18, "msct": 1}
    assert found.metadata == {"key": "wert ä"}
    assert found.node_domains == {"": 1, "msct": 1}
    assert not found.has_external_data


def test_the_long_name_of_the_standard_operators_is_the_empty_one() -> None:
    assert read_onnx(graph() + opset("ai.onnx", 18)).opsets == {"": 18}


def test_operator_sets_of_functions_count() -> None:
    body = message(25, message(1, "f"), opset("com.microsoft", 1, field=9))
    assert read_onnx(graph() + opset("", 18) + body).opsets == {"": 18, "com.microsoft": 1}


@pytest.mark.parametrize(
    "model",
    [
        graph(message(5, EXTERNAL)),
        graph(message(5, number(14, 1))),
        graph(message(15, message(1, EXTERNAL))),
        graph(message(15, message(2, EXTERNAL))),
        graph(message(1, message(5, message(5, EXTERNAL)))),
        graph(message(1, message(5, message(10, EXTERNAL)))),
        graph(message(1, message(5, message(22, message(1, EXTERNAL))))),
        graph(message(1, message(5, message(6, message(5, EXTERNAL))))),
        graph(message(1, message(5, message(11, message(5, EXTERNAL))))),
        graph() + message(25, message(7, message(5, message(5, EXTERNAL)))),
        graph() + message(25, message(11, message(5, EXTERNAL))),
        graph() + message(20, message(1, message(5, EXTERNAL))),
        graph() + graph(message(5, EXTERNAL)),
    ],
    ids=[
        "initializer",
        "location alone",
        "sparse values",
        "sparse indices",
        "constant",
        "list of constants",
        "sparse constant",
        "subgraph",
        "list of subgraphs",
        "function body",
        "default of a function's attribute",
        "training graph",
        "second graph, merged by protobuf",
    ],
)
def test_external_data_is_found_wherever_a_tensor_can_be(model: bytes) -> None:
    assert read_onnx(model).has_external_data


def test_the_bytes_of_a_tensor_are_no_fields() -> None:
    assert not read_onnx(graph(message(5, message(9, EXTERNAL)))).has_external_data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no graph"),
        (opset("", 18), "holds no graph"),
        (b"This is a text file, renamed.\n" * 9, "protobuf|cut short"),
        (graph(message(2, "fusion"))[:-1], "cut short"),
        (b"\xff" * 64, "protobuf"),
        (number(7, 1), "number stands where a message belongs"),
        (graph(message(11, message(1, b"\xff\xfe"))), "UTF-8"),
        (graph() + message(8, message(1, "msct")), "has no version"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason) as caught:
        read_onnx(data)
    assert "\n" not in str(caught.value)


def test_graphs_nested_without_end_are_refused() -> None:
    nested = b""
    for _ in range(100):
        nested = message(1, message(5, message(6, nested)))
    with pytest.raises(WireError, match="nested too deeply"):
        read_onnx(graph(nested))
