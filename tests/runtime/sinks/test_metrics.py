# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: what was said, what was lost, and only to this machine."""

from __future__ import annotations

import http.client
import socket
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from runtime.errors import UserError
from runtime.judging.verdict import Label, Reason
from runtime.sinks.background import Worker
from runtime.sinks.metrics import MAX_FACES, MetricsSink
from tests.runtime.judging.test_verdict import verdict
from tests.runtime.sinks.test_terminal import at, summary

pytest.importorskip(
    "prometheus_client", reason="prometheus_client is not installed (extra metrics)"
)


@pytest.fixture
def sink() -> Iterator[MetricsSink]:
    made = MetricsSink()
    yield made
    made.close()


def value(sink_: MetricsSink, name: str, /, **labels: str) -> float | None:
    found: float | None = sink_.registry.get_sample_value(name, labels)
    return found


def test_verdicts_are_counted_by_label_and_reason(sink: MetricsSink) -> None:
    for v in (
        at(2.0, Label.FAKE, 0.9), at(2.2, Label.FAKE, 0.9), at(2.4, Label.REAL, 0.1),
        at(2.6, Label.ABSTAIN, None, reason=Reason.NO_FACE, face_id=None),
    ):  # fmt: skip
        sink.write(v)
    counted = [
        value(sink, "msct_verdicts_total", source="a.mp4", label=label, reason=reason)
        for label, reason in (("fake", ""), ("real", ""), ("abstain", "no_face"))
    ]
    assert counted == [2, 1, 1]


def test_the_newest_scores_of_a_face_and_none_where_there_is_no_basis(sink: MetricsSink) -> None:
    def score(modality: str) -> float | None:
        return value(sink, "msct_p_fake", source="a.mp4", face="3", modality=modality)

    sink.write(at(2.0, Label.FAKE, 0.9, p_fake_video=0.4, p_fake_audio=None, av_offset_ms=80.0))
    assert (score("both"), score("picture"), score("voice")) == (0.9, 0.4, None)
    assert value(sink, "msct_av_offset_seconds", source="a.mp4", face="3") == 0.08
    sink.write(at(2.2, Label.ABSTAIN, 0.99, reason=Reason.OUT_OF_DOMAIN, av_offset_ms=None))
    assert (score("both"), score("picture"), score("voice")) == (None, None, None)
    assert value(sink, "msct_av_offset_seconds", source="a.mp4", face="3") is None


def test_latency_is_a_histogram_in_seconds(sink: MetricsSink) -> None:
    for ms in (4.0, 40.0, 400.0):
        sink.write(verdict(latency_ms=ms))
    name = "msct_verdict_latency_seconds"
    assert value(sink, f"{name}_count", source="a.mp4") == 3
    assert value(sink, f"{name}_sum", source="a.mp4") == pytest.approx(0.444)
    assert value(sink, f"{name}_bucket", source="a.mp4", le="0.05") == 2


def test_drops_of_a_live_source_are_counted_by_its_own_causes(sink: MetricsSink) -> None:
    run = summary(damaged=5, drops={"behind": 3, "timestamp": 1, "decode_error": 4})
    sink.begin(run)
    run.stats.dropped = 2
    run.stats.shed_windows = 6
    causes = {"behind": 3, "timestamp": 1 + 2, "decode_error": 4, "damaged": 0, "shed_windows": 6}
    for cause, n in causes.items():
        assert value(sink, "msct_drops_total", source="a.mp4", cause=cause) == n, cause


def test_counters_of_a_run_are_read_while_it_runs(sink: MetricsSink) -> None:
    run = summary(damaged=2, media_s=10.0)
    sink.begin(run)
    run.stats.late = 7
    run.stats.seconds["face"] = 3.0
    assert value(sink, "msct_coverage_ratio", source="a.mp4") == 0.8
    assert value(sink, "msct_drops_total", source="a.mp4", cause="late") == 7
    assert value(sink, "msct_drops_total", source="a.mp4", cause="damaged") == 2
    assert value(sink, "msct_real_time_factor", source="a.mp4") == pytest.approx(0.3)
    assert value(sink, "msct_media_seconds_total", source="a.mp4") == 10
    run.stats.late = 9
    assert value(sink, "msct_drops_total", source="a.mp4", cause="late") == 9
    assert value(
        sink, "msct_model_info", source="a.mp4", model_id="m-1", provider="cpu"
    )  # fmt: skip


def test_losses_of_sinks_with_their_cause_also_of_two_with_one_name() -> None:
    workers = [Worker("--report"), Worker("--report"), Worker("--save-video")]
    workers[0].lost["picture", "queue full"] = 3
    workers[1].lost["picture", "queue full"] = 4
    workers[1].error = "broken"
    sink = MetricsSink(lambda: workers)
    lost = value(sink, "msct_sink_lost_total", sink="--report", what="picture", cause="queue full")
    assert lost == 7
    assert value(sink, "msct_sink_up", sink="--report") == 0
    assert value(sink, "msct_sink_up", sink="--save-video") == 1


def test_faces_of_a_busy_week_do_not_pile_up(sink: MetricsSink) -> None:
    for face in range(500):
        sink.write(at(2.0, Label.REAL, 0.1, face_id=face))
    faces = {
        sample.labels["face"]
        for family in sink.registry.collect()
        for sample in family.samples
        if sample.name in ("msct_p_fake", "msct_av_offset_seconds")
    }
    assert faces == {str(face) for face in range(500 - MAX_FACES, 500)}


def test_it_is_served_to_this_machine(sink: MetricsSink) -> None:
    sink.write(at(2.0, Label.FAKE, 0.9))
    page = sink.serve("127.0.0.1:0")
    with urllib.request.urlopen(page, timeout=10) as answer:
        text = answer.read().decode()
    assert 'msct_verdicts_total{label="fake",reason="",source="a.mp4"} 1.0' in text
    assert "python_info" not in text  # a registry of its own
    with pytest.raises(UserError, match="cannot listen there"):
        MetricsSink().serve(page.removeprefix("http://").removesuffix("/metrics"))


def status(page: str, **headers: str) -> tuple[int, str]:
    """Of a request at that page's port, with these headers, which go out as they are."""
    port = urlsplit(page).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest("GET", "/metrics", skip_host=True)
        for name, value_ in headers.items():
            connection.putheader(name, value_)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_on_loopback_only_this_machines_names_are_answered_to(sink: MetricsSink) -> None:
    page = sink.serve("127.0.0.1:0", ["msct"])
    for host in ("127.0.0.1", "localhost:9108", "[::1]"):
        code, text = status(page, Host=host)
        assert code == 200
        assert "msct_model_info" in text
    for host in ("evil.example", "msct", "192.0.2.7", ""):
        code, text = status(page, Host=host)
        assert code == 421
        assert "msct_" not in text
    assert status(page)[0] == 421  # none at all
    assert status(page, Host="127.0.0.1", Origin="http://evil.example")[0] == 403


def test_beyond_loopback_also_names_that_were_given(sink: MetricsSink) -> None:
    page = sink.serve("0.0.0.0:0", ["msct"])
    for host in ("msct:9108", "192.0.2.7:9108", socket.gethostname()):
        assert status(page, Host=host)[0] == 200
    assert status(page, Host="evil.example")[0] == 421


def test_serving_looks_no_name_up(sink: MetricsSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base class asks the DNS what the address is called."""
    asked: list[str] = []
    monkeypatch.setattr(socket, "getfqdn", lambda name="": asked.append(name) or name)
    sink.serve("127.0.0.1:0")
    assert asked == []
