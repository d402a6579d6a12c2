"""`python -m deployer.deployments FOLDER`: the supervisor of a detached deployment."""

from __future__ import annotations

import sys
from pathlib import Path

from deployer.deployments.spec import DeploymentSpec
from deployer.deployments.state import DeploymentFolder
from deployer.deployments.supervisor import DeploymentSupervisor
from deployer.errors import DeployerError
from deployer.home import Home
from deployer.serving.holding import SupervisorLog


def main() -> int:
    folder = DeploymentFolder(Path(sys.argv[1]))
    try:
        spec = DeploymentSpec.read(folder.spec_file)
        DeploymentSupervisor(spec, Home(folder.root.parents[1]), SupervisorLog()).run()
    except DeployerError as error:
        sys.stderr.write(f"{error.message}\n")  # into supervisor.log
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
