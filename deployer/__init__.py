"""deployer: from a YAML recipe to a measured, packaged and served language model."""

__version__ = "0.1.0"
