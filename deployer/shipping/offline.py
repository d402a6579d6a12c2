"""What stands beside the bundle in an archive for a machine without network.

    bundle/             the bundle
    wheels/deployer/    deployer and what it needs, with a list of their hashes
    wheels/TOOLCHAIN/   the packages of each toolchain that serving needs
    offline.json        for which machine, and for which locks
    install.sh          installs deployer and imports the rest
    README.txt

`install.sh` lies beside this module; what it needs to know is written into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from deployer import __version__
from deployer.artifacts import Manifest, file_digest
from deployer.engines import Facts, Launch, ModelToServe, engine_named
from deployer.errors import PlanError
from deployer.recipe import Serve
from deployer.toolchains.specs import Host, ToolchainSpec

RECORD, SCRIPT, README = "offline.json", "install.sh", "README.txt"
WHEELS = "wheels"
OWN = "deployer"
"""The folder below `wheels` for deployer itself."""
REQUIREMENTS = "requirements.txt"


class Carried(BaseModel):
    """The packages of one toolchain; `lock` is the SHA-256 of the lock that they are all of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    toolchain: str
    lock: str


class Offline(BaseModel):
    """`offline.json`: which machine the packages are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    deployer: str
    python: str
    system: str
    machine: str
    toolchains: tuple[Carried, ...]

    @classmethod
    def of(cls, specs: tuple[ToolchainSpec, ...], host: Host) -> Offline:
        carried = tuple(
            Carried(toolchain=spec.name, lock=file_digest(spec.lock_path)) for spec in specs
        )
        return cls(
            deployer=__version__, python=host.python, system=host.system, machine=host.machine,
            toolchains=carried,
        )  # fmt: skip

    def fits(self, host: Host) -> bool:
        """Whether the packages are for such a machine."""
        return (self.python, self.system, self.machine) == (host.python, host.system, host.machine)


def serving(manifest: Manifest) -> Launch:
    """How the bundle is served where nothing but a toolchain may be used.

    That is the engine's own choice on a bare machine: never a program of the machine's, never
    one that must be compiled. Raises PlanError for settings that cannot be.
    """
    engine = engine_named(manifest.engine)
    device = str(manifest.plan.get("device", "cpu"))
    facts = Facts(has_gpu=device == "cuda")
    settings = {**manifest.serve, "port": 8080, "api_key_file": None, "server": "auto"}
    try:
        serve = Serve.model_validate(settings, strict=False)
    except ValueError as error:
        raise PlanError(
            f"the serve settings of {manifest.name} cannot be read", "Build the bundle again."
        ) from error
    model = ModelToServe.of(manifest, Path(manifest.weights), device)
    return engine.launch(engine.choose("auto", facts), model, serve, facts)


def serve_command(manifest: Manifest, name: str) -> tuple[str, ...]:
    """The command that serves an imported bundle with the server that was carried."""
    wanted, carried = manifest.serve.get("server", "auto"), serving(manifest).server
    change = () if wanted in ("auto", carried) else ("--set", f"serve.server={carried}")
    return ("deployer", "serve", name, *change)


def beside(manifest: Manifest, record: Offline) -> dict[str, str]:
    """The small files of the archive: name -> text."""
    script = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
    return {
        RECORD: record.model_dump_json(indent=1) + "\n",
        SCRIPT: script.replace("@PYTHON@", record.python),
        README: _readme(manifest, record),
    }


def _readme(manifest: Manifest, record: Offline) -> str:
    toolchains = ", ".join(carried.toolchain for carried in record.toolchains)
    command = " ".join(serve_command(manifest, manifest.name))
    return f"""\
{manifest.name}, with all that serving it needs on a machine without network
digest of the bundle: {manifest.digest}

For {record.system} on {record.machine} with Python {record.python} (and its venv module).
What is not here: Python itself, and for NVIDIA GPUs the driver.

    sh install.sh                 # or: sh install.sh FOLDER; the default is ~/deployer
    ~/deployer/bin/{command}

install.sh makes a virtual environment with deployer {record.deployer} from wheels/{OWN}, then
runs `deployer import` on this folder. That verifies the bundle, copies it, and makes the toolchains
({toolchains}) from wheels/. Nothing is downloaded.

To demand a signature: DEPLOYER_VERIFY_KEY=public.pem sh install.sh
A signature covers the bundle alone. The packages of a toolchain must match the hashes in the lock
that deployer carries; deployer itself is only as good as this archive: compare the SHA-256 of the
archive with what its maker told you.
"""
