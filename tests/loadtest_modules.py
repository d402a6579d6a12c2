"""What Locust imports from the folder `loadtests`, which is no package."""

from __future__ import annotations

import sys

from deployer.loadtest import driver

sys.path.insert(0, str(driver.locustfile().parent))
try:
    import answer
    import prompts
    import reply
    import settings
    import wire
finally:
    del sys.path[0]

__all__ = ["answer", "prompts", "reply", "settings", "wire"]
