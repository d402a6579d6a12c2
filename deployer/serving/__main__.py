"""`python -m deployer.serving FOLDER`: the supervisor of a detached server."""

from __future__ import annotations

import sys
from pathlib import Path

from deployer.errors import DeployerError
from deployer.serving.state import ServerFolder
from deployer.serving.supervisor import Spec, Supervisor


def main() -> int:
    folder = ServerFolder(Path(sys.argv[1]))
    try:
        Supervisor(Spec.read(folder.spec_file), folder).run()
    except DeployerError as error:
        sys.stderr.write(f"{error.message}\n")  # into supervisor.log
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
