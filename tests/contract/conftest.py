"""The contract suites share the integration tests' deployer home and demo model."""

from integration.conftest import demo_gguf, home

__all__ = ["demo_gguf", "home"]
