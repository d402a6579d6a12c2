"""Tests of minutes each, beyond what the gate has time for: `DEPLOYER_SLOW_TESTS=1 make test`."""

from __future__ import annotations

import os

import pytest

SLOW = pytest.mark.skipif(
    not os.environ.get("DEPLOYER_SLOW_TESTS"),
    reason="takes minutes: DEPLOYER_SLOW_TESTS=1 make test",
)
