"""The only composer: it knows the order of the steps, and nothing else does.

    building   plan and build a recipe
    bundles    find a bundle that was built
    running    serve a bundle, load-test a server

Each function is one command's work: it takes plain values and gives records; it never prints.
Import the module you need: each one loads only what its commands use.
"""
