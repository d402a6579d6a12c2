"""Fault tests use the fixtures of the integration tests."""

from integration.conftest import demo_bundle, demo_gguf, home

__all__ = ["demo_bundle", "demo_gguf", "home"]
