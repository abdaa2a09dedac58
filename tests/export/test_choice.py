# SPDX-License-Identifier: Apache-2.0
"""Which backend, for which GPUs, and why; on machines that are made up."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType

import pytest

from export import choice
from export.choice import RTX_DEFAULT_TARGETS, RTX_TARGETS, Choice, Target, choose, target
from runtime.backends import cuda
from runtime.errors import DependencyError, UsageError

Machine = Callable[..., None]
TRT, RTX = "tensorrt", "tensorrt-rtx"


class FakeDevice:
    """A GPU of compute capability 8.7."""

    compute_capability = "8.7"

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make detection see these packages and this number of GPUs."""

    def make(*packages: str, gpus: int = 0) -> None:
        monkeypatch.setattr(choice, "installed", lambda flavour: flavour in packages)
        monkeypatch.setattr(cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(cuda, "Device", FakeDevice)

    return make


@pytest.mark.parametrize(
    ("packages", "gpus", "backend", "reason"),
    [
        ((TRT, RTX), 1, TRT, "an NVIDIA GPU and TensorRT are here"),
        ((TRT,), 1, TRT, "an NVIDIA GPU and TensorRT are here"),
        ((RTX,), 1, RTX, "an NVIDIA GPU, no TensorRT"),
        ((), 1, "onnx", "no TensorRT is installed"),
        ((TRT, RTX), 0, RTX, "no NVIDIA GPU here, built ahead of time"),
        ((RTX,), 0, RTX, "no NVIDIA GPU here, built ahead of time"),
        ((TRT,), 0, "onnx", "no NVIDIA GPU here, no TensorRT-RTX installed"),
        ((), 0, "onnx", "no NVIDIA GPU here, no TensorRT-RTX installed"),
    ],
)
def test_auto(
    machine: Machine, packages: tuple[str, ...], gpus: int, backend: str, reason: str
) -> None:
    machine(*packages, gpus=gpus)
    found = choose("auto")
    assert found.backend == backend
    assert found.reason.startswith("auto: ")
    assert reason in found.reason


@pytest.mark.parametrize("backend", ["onnx", RTX])
def test_what_was_asked_for_is_taken(machine: Machine, backend: str) -> None:
    machine(TRT, RTX)
    assert choose(backend) == Choice(backend, "asked for")


@pytest.mark.parametrize("backend", [TRT, RTX])
def test_a_missing_library_names_its_extra(machine: Machine, backend: str) -> None:
    machine(gpus=1)
    with pytest.raises(DependencyError, match=re.escape(f"pip install '.[{backend}]'")):
        choose(backend)


def test_tensorrt_needs_the_gpu(machine: Machine) -> None:
    machine(TRT, RTX)
    with pytest.raises(DependencyError, match=r"none here.*--backend tensorrt-rtx"):
        choose(TRT)


class TestTargets:
    def test_without_a_gpu_all_named_ones_but_turing(self, machine: Machine) -> None:
        machine(RTX)
        assert target(RTX, (), half=True) == Target(RTX_DEFAULT_TARGETS, here=False)
        assert set(RTX_TARGETS) - set(RTX_DEFAULT_TARGETS) == {"7.5"}

    @pytest.mark.parametrize("flavour", [TRT, RTX])
    def test_with_a_gpu_that_one(self, machine: Machine, flavour: str) -> None:
        machine(TRT, RTX, gpus=1)
        assert target(flavour, (), half=True) == Target(("8.7",), here=True)

    def test_several_in_their_order_each_once(self, machine: Machine) -> None:
        machine(RTX, gpus=1)
        found = target(RTX, ("12.0", "7.5", "8.6", "8.6"), half=True)
        assert found == Target(("7.5", "8.6", "12.0"), here=False)

    @pytest.mark.parametrize("name", ["8.7", "9.0", "86", "sm_86", ""])
    def test_others_are_refused_with_the_list(self, machine: Machine, name: str) -> None:
        machine(RTX)
        with pytest.raises(UsageError, match=re.escape(", ".join(RTX_TARGETS))) as caught:
            target(RTX, ("8.6", name), half=True)
        assert "\n" not in str(caught.value)

    def test_turing_needs_half_precision(self, machine: Machine) -> None:
        machine(RTX)
        with pytest.raises(UsageError, match=r"--target-sm 7\.5 needs --fp16"):
            target(RTX, ("7.5",), half=False)

    def test_tensorrt_builds_for_the_gpu_that_is_here(self, machine: Machine) -> None:
        machine(TRT, gpus=1)
        with pytest.raises(UsageError, match="--target-sm is for --backend tensorrt-rtx"):
            target(TRT, ("8.6",), half=True)
