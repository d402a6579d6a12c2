"""Fault tests use the fixtures of the integration tests."""

from integration.conftest import demo_bundle, demo_checkpoint, demo_gguf, home, work

__all__ = ["demo_bundle", "demo_checkpoint", "demo_gguf", "home", "work"]
