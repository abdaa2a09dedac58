# SPDX-License-Identifier: Apache-2.0
"""The two engines beside a pair: what is parsed for them, what they were built for, the check."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import builder, pair
from export.choice import Choice, Target
from export.pair import PAIR, Probes, Source, Step
from export.parity import LOGIT_LIMIT_ENGINE_FP32, Parity
from runtime.backends import cuda
from runtime.backends.base import OP_DOMAIN
from runtime.backends.manifest import ENGINE_FILES, TITLES, EngineFacts, PluginFacts, this_platform
from runtime.backends.onnx_file import read_onnx
from runtime.optional import optional
from runtime.spec import PairSpec

COMPARED = "compared"


@dataclass(frozen=True)
class Plan:
    """What the options say about engines."""

    choice: Choice
    target: Target
    library: Path | None  # of the plugins; None: without
    window_tokens: int
    max_batch: int
    timing_cache: Path | None


@dataclass(frozen=True)
class Engines:
    """What was built."""

    facts: EngineFacts
    parsed: tuple[str, ...]  # files that were parsed in place of the pair's
    seconds: dict[str, float]  # graph -> time to parse and build
    timing_cache: str | None

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.parsed, *ENGINE_FILES)

    @property
    def layers(self) -> dict[str, int]:
        """Graph -> plugin layers counted in its network."""
        plugins = self.facts.plugins
        return plugins.layers if plugins is not None else dict.fromkeys(self.seconds, 0)

    def report(self) -> dict[str, Any]:
        return {
            **self.facts.to_dict(),
            "plugin_layers": self.layers,
            "build_s": self.seconds,
            "timing_cache": self.timing_cache,
        }


def build(plan: Plan, folder: Path, spec: PairSpec, step: Step) -> Engines:
    """Build both engines of the pair in ``folder``, beside it."""
    shapes = builder.profiles(spec, window_tokens=plan.window_tokens, max_batch=plan.max_batch)
    graphs: list[builder.Graph] = []
    for name, engine in zip(PAIR, ENGINE_FILES, strict=True):
        file, plugins = folder / name, dict[str, int]()
        if plan.library is not None:
            file, plugins = _plugin_graph(file)
        stem = Path(name).stem
        graphs.append(builder.Graph(stem, file, folder / engine, shapes[stem], plugins))
    parsed = tuple(graph.onnx.name for graph in graphs if graph.plugins)
    library = plan.library if parsed else None  # graphs without custom ops need none
    built = builder.build(
        builder.Request(
            plan.choice.backend, tuple(graphs), plan.target, library, plan.timing_cache
        ),
        step,
    )
    facts = EngineFacts(
        flavour=plan.choice.backend,
        version=built.version,
        compute_capabilities=plan.target.compute_capabilities,
        platform=this_platform(),
        precision=spec.precision.partition("+")[0],
        int8_encoder=spec.int8,
        plugins=None if library is None else _plugin_facts(library, built.layers),
        profiles=shapes,
    )
    return Engines(facts, parsed, built.seconds, built.timing_cache)


def _plugin_facts(library: Path, layers: dict[str, int]) -> PluginFacts:
    return PluginFacts(library.name, hashlib.sha256(library.read_bytes()).hexdigest(), layers)


def _plugin_graph(path: Path) -> tuple[Path, dict[str, int]]:
    """The file to parse for plugins, written beside ``path`` where it differs; nodes by op."""
    if not read_onnx(path.read_bytes()).node_domains[OP_DOMAIN]:
        return path, {}
    with optional("for engines with plugins"):
        import onnx

        from export.plugin_graph import custom_ops, with_plugins
    model = with_plugins(onnx.load_from_string(path.read_bytes()))
    parsed = path.with_suffix(".plugins.onnx")
    parsed.write_bytes(model.SerializeToString(deterministic=True))
    return parsed, custom_ops(model)


def why_not_run(target: Target) -> str | None:
    """Why the engines cannot be run here; None if they can."""
    if cuda.device_count() == 0:
        return "engine not run: no GPU here"
    with cuda.Device() as device:
        here = device.compute_capability
    if here not in target.compute_capabilities:
        return (
            f"engine not run: the GPU here has compute capability {here}, the engine is for "
            f"{', '.join(target.compute_capabilities)}"
        )
    return None


def check(source: Source, folder: Path, plan: Plan, built: Engines, probes: Probes) -> Parity:
    """Run the engines of ``folder`` as the runtime does, against the source in ONNX Runtime."""
    from runtime.backends.tensorrt import TensorRTBackend

    library = plan.library if built.facts.plugins is not None else None
    with TensorRTBackend(folder, plugin_library=library) as engine:
        precision = engine.spec.precision
        title = f"{TITLES[built.facts.flavour]} {precision} engine"
        logits = LOGIT_LIMIT_ENGINE_FP32 if precision == "fp32" else None
        return pair.compare_with(source, engine, title, probes, logits=logits)
