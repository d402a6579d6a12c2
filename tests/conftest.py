"""What every test stands on: a home of its own, no process, no network, nothing in the user's home.

A test marked `integration`, `faults` or `soak` may start processes; any other that tries fails on
the spot, with the reason. The guard is an audit hook of the interpreter, so no path around it stays
open by accident.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from guard import GUARD
from hypothesis import HealthCheck, settings

settings.register_profile(
    "check",
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("check")
FREE = ("integration", "faults", "soak")
"""Markers of the tests that may start processes."""


@pytest.fixture(scope="session")
def _temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    GUARD.allowed = (*GUARD.allowed, str(tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def _alone(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    _temporary_folders: None,
) -> Iterator[None]:
    """A deployer home and a user home of its own for each test that may start no process."""
    if any(request.node.get_closest_marker(name) for name in FREE):
        yield
        return
    monkeypatch.setenv("DEPLOYER_HOME", str(tmp_path / "deployer-home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # else a GPU would be asked for by a process
    GUARD.active = True
    yield
    GUARD.active = False
