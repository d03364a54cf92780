"""Marks of tests that need more than the package itself."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

# Ray leaves to the garbage collector what it opened and started itself.
_RAYS_OWN = [
    "ignore:unclosed file <_io.*name='/dev/null':ResourceWarning",
    r"ignore:subprocess \d+ is still running:ResourceWarning",
]
ON_RAY = [
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install 'fedattn[sim]'"
    ),
    pytest.mark.slow,
    *(pytest.mark.filterwarnings(each) for each in _RAYS_OWN),
]
