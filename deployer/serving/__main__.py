"""`python -m deployer.serving FOLDER`: the supervisor of a detached server."""

from __future__ import annotations

import sys
from pathlib import Path

from deployer.errors import DeployerError
from deployer.serving.holding import SupervisorLog
from deployer.serving.spec import Spec
from deployer.serving.state import ServerFolder
from deployer.serving.supervisor import Supervisor


def main() -> int:
    folder, log = ServerFolder(Path(sys.argv[1])), SupervisorLog()
    try:
        Supervisor(Spec.read(folder.spec_file), folder, log).run()
    except DeployerError as error:
        sys.stderr.write(f"{error.message}\n")  # its last words; whoever waits for us reads them
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
