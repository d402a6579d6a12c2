"""Traces that are not asked for cost nothing, and those that cannot be made say so.

That spans reach a collector is tested in integration/test_monitoring.py.
"""

from __future__ import annotations

import importlib.util

import pytest

from deployer.errors import UsageError
from deployer.gateway.outcome import Outcome
from deployer.gateway.tracing import Tracer


def test_without_a_collector_nothing_is_recorded() -> None:
    tracer = Tracer.of(None)
    with tracer.request({"traceparent": "00-1-2-01"}, "chat", "m", streamed=True) as trace:
        trace.observe(Outcome("m", "q4", "k", 200, "ok", 1.0), None)
        assert trace.headers() == {}
    tracer.close()


@pytest.mark.parametrize("parent", [True, False])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, parent: bool) -> None:
    def find_spec(name: str) -> None:
        if not parent:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UsageError, match="not installed") as caught:
        Tracer.of("http://127.0.0.1:4318")
    assert "pip install 'deployer[traces]'" in caught.value.hint
