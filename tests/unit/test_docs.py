"""The documents tell the truth: fields, defaults, commands, exit codes, links, targets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployer import errors
from deployer.cli import cli
from deployer.recipe import GGUF_SCHEMES, Recipe, Source
from deployer.toolchains.specs import SPECS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SKIPPED = {".venv", ".deployer", ".git", "node_modules", ".pytest_cache", "build", "dist"}
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in SKIPPED]
DOCUMENTS = sorted(  # what is skipped may hold a hundred thousand files, so it is not entered
    path
    for path in (*ROOT.glob("*.md"), *(found for each in FOLDERS for found in each.rglob("*.md")))
    if not SKIPPED & set(path.relative_to(ROOT).parts)
)
REGISTRIES = (
    "pypi.org", "pythonhosted.org", "registry.npmjs.org", "npmjs.com", "deb.debian.org",
    "download.pytorch.org", "huggingface.co", "proxy.golang.org", "crates.io",
)  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w.$~/-])/(?:work|root|home|tmp|mnt|Users)/[\w.-]+")
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by the code word of their first cell, cells without spaces around them."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and (word := re.match(r"`([^`]+)`", cells[0])):
            found[word[1]] = cells
    return found


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the recipe models that is no section, by its dotted name."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def default_of(info: FieldInfo) -> str:
    """A default as the documents write it."""
    if info.is_required():
        return "required"
    value: Any = info.get_default(call_default_factory=True)
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def commands(group: click.Command, path: str = "deployer") -> Iterator[tuple[str, click.Command]]:
    """Every command of the tree that does something, by its full name."""
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, f"{path} {name}")
    if not isinstance(group, click.Group) or group.invoke_without_command:
        yield path, group


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"there is no section {title!r}"
    return match[1]


FIELDS = dict(leaves(Recipe))
COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_stands_in_the_recipe_document_with_its_default(name: str) -> None:
    documented = rows(text_of("docs/recipe.md"))
    assert name in documented, f"docs/recipe.md has no row for {name}"
    assert documented[name][2] == default_of(FIELDS[name])


def test_the_recipe_document_has_no_field_that_does_not_exist() -> None:
    documented = {name for name in rows(text_of("docs/recipe.md")) if "`" not in name}
    assert documented == set(FIELDS)


def test_every_scheme_is_named() -> None:
    text = text_of("docs/recipe.md")
    assert [scheme for scheme in GGUF_SCHEMES if f"`{scheme}`" not in text] == []


@pytest.mark.parametrize("block", YAML_BLOCK.findall(text_of("docs/recipe.md")))
def test_every_example_of_the_recipe_document_is_valid(block: str) -> None:
    data = yaml.safe_load(block)
    if "version" in data:
        Recipe.model_validate_json(json.dumps(data))
    else:
        assert list(data) == ["source"]
        Source.model_validate(data["source"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    below = section(text_of("docs/cli.md"), name)
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            for spelling in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", below), spelling


def test_every_documented_command_exists() -> None:
    titles = re.findall(r"^## (deployer .+)$", text_of("docs/cli.md"), re.MULTILINE)
    assert sorted(titles) == sorted(COMMANDS)


def test_every_exit_code_is_documented() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    listed = re.findall(r"^\| (\d+) \|", text_of("docs/errors.md"), re.MULTILINE)
    assert {int(code) for code in listed} == codes


def test_every_kind_of_error_is_documented_with_its_code() -> None:
    documented = rows(text_of("docs/errors.md"))
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.DeployerError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        if kind is not errors.DeployerError:
            assert documented[kind.__name__][1] == str(kind.exit_code), kind.__name__


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name) if name else path
        assert found.exists(), f"{target} does not exist"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{target} has no such heading"


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_a_registry_host_or_a_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [host for host in REGISTRIES if host in text] == []
    assert MACHINE_PATH.findall(text) == []


def test_the_index_lists_every_document() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", text_of("docs/README.md"))
    listed = {(DOCS / target).resolve() for target in targets}
    assert sorted(set(DOCS.rglob("*.md")) - listed - {DOCS / "README.md"}) == []


def test_every_toolchain_is_described() -> None:
    page = DOCS / "toolchains.md"
    text = page.read_text(encoding="utf-8") if page.exists() else text_of("docs/store.md")
    assert [name for name in SPECS if f"`{name}`" not in text] == []


def test_every_make_target_is_documented() -> None:
    found = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
    text = text_of("README.md") + text_of("CONTRIBUTING.md")
    assert found
    assert [target for target in found if f"make {target}" not in text] == []


def test_every_documented_make_target_exists() -> None:
    found = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    text = text_of("README.md") + text_of("CONTRIBUTING.md")
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= found
