"""Isolated environments, one per purpose: `specs` says what they are, `provision` makes them.

The core never imports what they hold. `worker` runs a script with a toolchain's Python.
"""
