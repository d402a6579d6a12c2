"""The build stages, in order: fetch, convert, quantize, evaluate, package.

A stage fills an empty folder with its output and returns what to record about it; the store
publishes that folder. Stages never import each other: the workflow hands outputs on.
"""
