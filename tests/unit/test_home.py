"""Where things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.home import Home, default_home


def test_the_environment_names_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEPLOYER_HOME", str(tmp_path / "a" / ".." / "b"))
    assert default_home() == Home(tmp_path / "b")
    monkeypatch.setenv("DEPLOYER_HOME", "~/b")
    assert default_home().root == Path.home() / "b"


@pytest.mark.parametrize("value", ["", None])
def test_else_it_is_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("DEPLOYER_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("DEPLOYER_HOME", value)
    root = default_home().root
    assert root.name == "deployer"
    assert root.is_relative_to(Path.home())
    assert not root.exists()


def test_all_folders_lie_below_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folders = [home.store, home.bundles, home.toolchains, home.servers, home.loadtests, home.logs,
               home.cache]  # fmt: skip
    assert {folder.parent for folder in folders} == {tmp_path}
    assert len(set(folders)) == 7
