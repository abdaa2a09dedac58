# SPDX-License-Identifier: Apache-2.0
"""Everything in this folder needs a GPU; the kernels' tests need them compiled in, and torch.

pip install -e . -C cmake.define.MSCT_CUDA=ON && python -m pytest tests/gpu
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def compiled() -> None:
    """Skips where the installed package has no CUDA kernels."""
    from runtime.backends import native

    found = native.capabilities()
    if not found.cuda_architectures:
        pytest.skip("the CUDA kernels are not compiled in: pip install with MSCT_CUDA=ON")
