"""Where deployer keeps what it makes: one folder, named by `DEPLOYER_HOME`.

store/       stage outputs, one folder per key
bundles/     finished bundles, NAME/DIGEST
toolchains/  isolated environments
wheels/      packages that `deployer import` brought, used before the package index
servers/     state and logs of detached servers
deployments/ state, table and logs of deployments: several servers and their gateway
loadtests/   load-test results, one folder a run
evaluations/ quality measured of bundles, one folder a run
comparisons/ formats measured side by side, one folder a run
footprints/  memory and times that the servers of bundles were seen to take, one file a bundle
logs/        logs of builds
cache/       downloads; safe to delete
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folders of one deployer installation; nothing is created by asking for a path."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def toolchains(self) -> Path:
        return self.root / "toolchains"

    @property
    def wheels(self) -> Path:
        return self.root / "wheels"

    @property
    def servers(self) -> Path:
        return self.root / "servers"

    @property
    def deployments(self) -> Path:
        return self.root / "deployments"

    @property
    def loadtests(self) -> Path:
        return self.root / "loadtests"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def comparisons(self) -> Path:
        return self.root / "comparisons"

    @property
    def footprints(self) -> Path:
        return self.root / "footprints"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"


def default_home() -> Home:
    """`$DEPLOYER_HOME`, or the user's data folder for applications."""
    override = os.environ.get("DEPLOYER_HOME")
    if override:
        root = Path(override)
        with contextlib.suppress(RuntimeError):  # "~name" of a user who does not exist
            root = root.expanduser()
        return Home(root.resolve())
    import platformdirs  # only here: it is slow to import

    return Home(Path(platformdirs.user_data_dir("deployer", appauthor=False)))
