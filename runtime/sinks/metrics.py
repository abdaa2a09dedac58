# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the verdicts and of the run, on a registry of their own.

Names and units follow Prometheus' own rules (base units, ``_total`` for counters).  Counters of the
run are read when somebody asks: its :class:`runtime.flow.summary.Stats` are alive while it runs.
The server listens on this machine alone unless it was told otherwise, and answers to the same names
as the page (:meth:`runtime.listen.Address.refusal`).
"""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from runtime.errors import UserError
from runtime.flow.summary import losses
from runtime.judging.verdict import Verdict
from runtime.listen import REFUSALS, Address, parse_listen
from runtime.optional import optional
from runtime.sinks.background import Worker
from runtime.sinks.terminal import shown_scores

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from runtime.flow.summary import Summary

DEFAULT_ADDRESS = "127.0.0.1:9108"
LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
REQUEST_S = 10.0  # without a word from a client it is let go
MAX_FACES = 16  # a source; gauges of faces seen less lately are dropped, or they pile up for ever

Losses = Callable[[], Sequence[Worker]]


class MetricsSink:
    """Counts verdicts; serves them once :meth:`serve` was called.

    ``workers`` gives the sinks' workers, whose losses are metrics, too.
    Raises :class:`DependencyError` without prometheus_client.
    """

    def __init__(self, workers: Losses = tuple) -> None:
        client = _import_client()
        self._client, self._workers = client, workers
        self.registry = client.CollectorRegistry()
        self._server: _Server | None = None
        self._runs: dict[str, Summary] = {}
        self._faces: dict[str, OrderedDict[str, None]] = {}

        def gauge(name: str, about: str, labels: Sequence[str]) -> Any:
            return client.Gauge(name, about, labels, registry=self.registry)

        self._verdicts = client.Counter(
            "msct_verdicts", "Windows by outcome; reason is empty but for abstentions.",
            ["source", "label", "reason"], registry=self.registry,
        )  # fmt: skip
        self._latency = client.Histogram(
            "msct_verdict_latency_seconds", "From the last evidence to the verdict.",
            ["source"], buckets=LATENCY_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self._p_fake = gauge(
            "msct_p_fake",
            "Newest probability of fake of a face, by modality; absent where it has no basis.",
            ["source", "face", "modality"],
        )
        self._offset = gauge(
            "msct_av_offset_seconds", "Newest measured offset; above 0 the sound comes late.",
            ["source", "face"],
        )  # fmt: skip
        self.registry.register(_Runs(self))

    def begin(self, summary: Summary) -> None:
        self._runs[summary.source] = summary

    def write(self, verdict: Verdict) -> None:
        source, face = verdict.source, "" if verdict.face_id is None else str(verdict.face_id)
        reason = "" if verdict.reason is None else verdict.reason.value
        self._verdicts.labels(source, verdict.label.value, reason).inc()
        self._latency.labels(source).observe(verdict.latency_ms / 1000)
        scores = zip(("both", "picture", "voice"), shown_scores(verdict), strict=True)
        for modality, p in scores:
            _set(self._p_fake, (source, face, modality), p)
        offset = verdict.av_offset_ms
        _set(self._offset, (source, face), None if offset is None else offset / 1000)
        self._forget_faces(source, face)

    def serve(self, address: str, allowed: Iterable[str] = ()) -> str:
        """Listen there (:func:`parse_address`); returns the address of the page.

        Raises :class:`UsageError` for what is no address and :class:`UserError` where it is taken.
        """
        where = parse_address(address, allowed)
        try:
            self._server = _Server(where, self._client.make_wsgi_app(self.registry))
        except OSError as err:
            why = err.strerror or str(err)
            raise UserError(f"--metrics {address}: cannot listen there: {why}") from None
        threading.Thread(
            target=self._server.serve_forever, name="msct-metrics", daemon=True
        ).start()
        shown = f"[{where.host}]" if ":" in where.host else where.host
        return f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _forget_faces(self, source: str, face: str) -> None:
        faces = self._faces.setdefault(source, OrderedDict())
        faces[face] = None
        faces.move_to_end(face)
        while len(faces) > MAX_FACES:
            gone, _ = faces.popitem(last=False)
            for modality in ("both", "picture", "voice"):
                _set(self._p_fake, (source, gone, modality), None)
            _set(self._offset, (source, gone), None)


def parse_address(text: str, allowed: Iterable[str] = ()) -> Address:
    """As :func:`runtime.listen.parse_listen`."""
    return Address(*parse_listen(text, DEFAULT_ADDRESS, "--metrics"), frozenset(allowed))


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves ``app`` at an address, to whom that address answers."""

    daemon_threads = True

    def __init__(self, address: Address, app: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__((address.host, address.port), _Handler)
        self.set_app(_guarded(app, address))

    def server_bind(self) -> None:
        """As in the base class, which also looks up the name that the address has in the DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, *_: Any) -> None:
        """A client that went away is nobody's error."""


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, *_: Any) -> None:
        pass


def _guarded(app: WSGIApplication, address: Address) -> WSGIApplication:
    def guard(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        status = address.refusal(environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN"))
        if status is None:
            return app(environ, start)
        start(f"{status} {http.client.responses[status]}", [("Content-Type", "text/plain")])
        return [f"{REFUSALS[status]}\n".encode()]

    return guard


class _Runs:
    """A collector that reads the runs' counters when it is asked."""

    def __init__(self, sink: MetricsSink) -> None:
        self._sink = sink

    def collect(self) -> Iterator[Any]:
        core = self._sink._client.core
        runs = list(self._sink._runs.items())

        model = core.GaugeMetricFamily(
            "msct_model_info", "What judges; always 1.", labels=["source", "model_id", "provider"]
        )
        coverage = core.GaugeMetricFamily(
            "msct_coverage_ratio", "Share of windows that got a verdict.", labels=["source"]
        )
        media = core.CounterMetricFamily(
            "msct_media_seconds", "Stream seconds read.", labels=["source"]
        )
        busy = core.CounterMetricFamily(
            "msct_processing_seconds", "Time spent, by stage.", labels=["source", "stage"]
        )
        factor = core.GaugeMetricFamily(
            "msct_real_time_factor", "Time spent for a second of media; above 1 it falls behind.",
            labels=["source"],
        )  # fmt: skip
        drops = core.CounterMetricFamily(
            "msct_drops", "What was lost on the way to the model.", labels=["source", "cause"]
        )
        for source, run in runs:
            stats = run.stats
            model.add_metric([source, run.model_id, run.provider], 1)
            coverage.add_metric([source], stats.coverage)
            media.add_metric([source], run.media_s)
            for stage, seconds in list(stats.seconds.items()):
                busy.add_metric([source, stage], seconds)
            if run.media_s > 0:
                factor.add_metric([source], sum(stats.seconds.values()) / run.media_s)
            for cause, n in losses(stats, run.damaged, run.drops).items():
                drops.add_metric([source, cause], n)
        yield from (model, coverage, media, busy, factor, drops)

        lost = core.CounterMetricFamily(
            "msct_sink_lost", "What a sink did not take.", labels=["sink", "what", "cause"]
        )
        working = core.GaugeMetricFamily(
            "msct_sink_up", "0 where a sink was switched off.", labels=["sink"]
        )
        counts: Counter[tuple[str, str, str]] = Counter()
        up: dict[str, bool] = {}
        for worker in list(self._sink._workers()):  # of several sources some have one name
            up[worker.name] = up.get(worker.name, True) and worker.error is None
            for (what, cause), n in list(worker.lost.items()):
                counts[worker.name, what, cause] += n
        for name, works in up.items():
            working.add_metric([name], works)
        for labels, n in counts.items():
            lost.add_metric(labels, n)
        yield from (lost, working)


def _set(gauge: Any, labels: tuple[str, ...], value: float | None) -> None:
    """A value that has no basis is absent, not 0."""
    if value is not None:
        gauge.labels(*labels).set(value)
        return
    with suppress(KeyError):  # it was absent already; before 0.22 the client says so
        gauge.remove(*labels)


def _import_client() -> Any:
    with optional("for --metrics"):
        import prometheus_client
        import prometheus_client.core
    return prometheus_client
