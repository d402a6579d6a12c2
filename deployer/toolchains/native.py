"""Compiling llama.cpp once, with progress; and the Python package over the compiled library."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import psutil

from deployer import process
from deployer.errors import CommandError, ToolchainError
from deployer.home import Home
from deployer.machine import usable_cores
from deployer.progress import Step
from deployer.toolchains import environment, sources
from deployer.toolchains.installation import Toolchain
from deployer.toolchains.specs import LLAMA_CPP_TREE, ToolchainSpec

BUILD_TIMEOUT = 3600.0
_BYTES_PER_COMPILER = 1_500_000_000
_NINJA_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\]")
_COMPILERS = ("c++", "g++", "clang++")


def check_compiler(spec: ToolchainSpec) -> None:
    """Raise ToolchainError where the spec compiles and the machine has no C++ compiler."""
    if not spec.compiles or os.environ.get("CXX") or any(map(process.which, _COMPILERS)):
        return
    raise ToolchainError(
        f"the {spec.name} toolchain compiles llama.cpp, and no C++ compiler was found",
        "Install one (on Debian: `apt-get install g++`), or use what needs none: "
        "serve.server xllamacpp, and schemes q4_0 or q8_0.",
    )


def build(archive: Path, spec: ToolchainSpec, root: Path, step: Step, log_path: Path) -> None:
    """Compile the spec's targets; programs and libraries end up in `root`/bin."""
    assert spec.source is not None and spec.joined is not None
    step.update(note="unpacking the sources")
    tree, made = root / "build-source", root / "build"
    sources.unpack(archive, f"{spec.source.folder}/{LLAMA_CPP_TREE}", spec.build_parts, tree)
    programs = root / "env" / "bin"
    configure = [
        str(programs / "cmake"), "-S", str(tree), "-B", str(made), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={programs / 'ninja'}", *spec.cmake,
        # Found by each other wherever they lie; and named by their release, not by the commit of
        # whatever git folder they are compiled in.
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
        "-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={spec.source.folder}",
        f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={spec.joined}",
    ]  # fmt: skip
    compile_all = [str(programs / "cmake"), "--build", str(made), "--parallel", str(_jobs())]
    compile_all += ["--target", *spec.targets]

    def on_line(line: str) -> None:
        match = _NINJA_PROGRESS.match(line)
        if match:
            step.update(done=int(match[1]), total=int(match[2]), note="compiling llama.cpp")

    env = process.clean_environment()
    try:
        step.update(note="configuring the build")
        process.run(configure, env=env, cwd=root, log_path=log_path, timeout=BUILD_TIMEOUT)
        process.run(
            compile_all, env=env, cwd=root, log_path=log_path, timeout=BUILD_TIMEOUT,
            on_line=on_line,
        )  # fmt: skip
    except CommandError as error:
        raise environment.explain(error, spec) from error
    shutil.copytree(made / "bin", root / "bin", symlinks=True)
    shutil.rmtree(made)
    shutil.rmtree(tree)


def _jobs() -> int:
    """As many compilers as cores we may use, but no more than fit into free memory."""
    fitting = int(psutil.virtual_memory().available // _BYTES_PER_COMPILER)
    return max(1, min(usable_cores(), fitting))


def bind(
    archive: Path,
    spec: ToolchainSpec,
    root: Path,
    required: dict[str, Toolchain],
    home: Home,
    log_path: Path,
) -> None:
    """Install the Python package without its compiled part, over the libraries already made.

    The package looks for its libraries in its own `lib` folder: that becomes a link to the
    native toolchain's, so nothing is compiled twice.
    """
    assert spec.source is not None
    tree = root / "build-source"
    parts = ("llama_cpp", "pyproject.toml", "README.md", "LICENSE.md", "CMakeLists.txt")
    sources.unpack(archive, spec.source.folder, parts, tree)
    python = root / "env" / "bin" / "python"
    try:
        environment.uv(
            ["pip", "install", "--python", str(python), "--no-deps", "--no-build-isolation",
             "--config-settings", "wheel.cmake=false", str(tree)],
            home=home, cwd=root, log_path=log_path,
        )  # fmt: skip
    except CommandError as error:
        raise environment.explain(error, spec) from error
    shutil.rmtree(tree)
    (package,) = (root / "env" / "lib").glob("python*/site-packages/llama_cpp")
    (package / "lib").symlink_to(required["llama-cpp-native"].root / "bin")


def check_programs(spec: ToolchainSpec, root: Path, log_path: Path) -> None:
    """Start each of the spec's programs once."""
    for name in spec.programs:
        program = root / "bin" / name
        try:
            # llama-quantize and llama-bench end their help text with status 1.
            status = process.run(
                [str(program), "--help"], env=process.clean_environment(), cwd=root,
                log_path=log_path, timeout=60, check=False,
            )  # fmt: skip
        except CommandError as error:
            raise environment.explain(error, spec) from error
        if status not in (0, 1):
            raise ToolchainError(
                f"the {spec.name} toolchain was built but {name} does not start",
                f"The whole log is in {log_path}.",
            )
