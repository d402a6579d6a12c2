"""Find what an engine's adapter wants to know of this machine."""

from __future__ import annotations

from deployer.engines import Engine, Facts
from deployer.home import Home
from deployer.machine import usable_cores
from deployer.process import which
from deployer.toolchains.installation import installed


def find_facts(engine: Engine, home: Home, has_gpu: bool) -> Facts:
    """The cores, the programs the adapter asks for, and the toolchains that are made."""
    return Facts(
        cores=usable_cores(),
        has_gpu=has_gpu,
        programs=frozenset(p for p in engine.programs if which(p)),
        toolchains=frozenset(t.name for t in installed(home) if t.current),
    )
