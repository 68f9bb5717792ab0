"""The transports that kit's server has on this machine."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

TRANSPORTS = (
    "grpcio",
    pytest.param(
        "native", marks=pytest.mark.skipif(find_spec("pygrpc_native") is None, reason="pygrpc-native is not installed")
    ),
)
