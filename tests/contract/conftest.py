"""The contract suites share the integration tests' deployer home and demo model."""

from integration.conftest import demo_checkpoint, demo_gguf, home, work

__all__ = ["demo_checkpoint", "demo_gguf", "home", "work"]
