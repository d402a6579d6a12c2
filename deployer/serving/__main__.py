"""`python -m deployer.serving FOLDER`: the supervisor of a detached server."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path

from deployer.errors import DeployerError
from deployer.progress import Silent
from deployer.serving.spec import Spec
from deployer.serving.state import ServerFolder
from deployer.serving.supervisor import Supervisor


class Log(Silent):
    """Standard error, which is supervisor.log: a line with its time for what went wrong."""

    def warn(self, message: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(OSError):  # a full disk
            sys.stderr.write(f"{now} {message}\n")
            sys.stderr.flush()


def main() -> int:
    folder, log = ServerFolder(Path(sys.argv[1])), Log()
    try:
        Supervisor(Spec.read(folder.spec_file), folder, log).run()
    except DeployerError as error:
        sys.stderr.write(f"{error.message}\n")  # its last words; whoever waits for us reads them
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
