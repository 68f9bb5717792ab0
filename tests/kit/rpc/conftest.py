"""Every test of this folder that asks for a server runs on both transports."""

from __future__ import annotations

import pytest

from tests.kit.transports import TRANSPORTS


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)
