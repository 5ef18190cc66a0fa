"""Which paths can be provided inside an environment, and that the note of it is read back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drservice.environments.folder import Description, read_description, share
from drservice.environments.limits import Limits
from drservice.environments.proc import ProcessIdentity
from drservice.errors import EnvironmentFailedError
from drservice.model.ids import EnvironmentId, ServiceName


def about(root: Path) -> Description:
    return Description(
        id=EnvironmentId("01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        service=ServiceName("erp"),
        purpose="restore",
        data=root / "data",
        owns_data=True,
        folders={},
        sock=root / "sock",
        account=None,
        limits=Limits(),
        maker=ProcessIdentity(pid=1, start_ticks=1, boot_id="x"),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        expires_at=datetime(2026, 1, 2, tzinfo=UTC),
        ends_at_boottime=1.0,
    )


def test_what_is_shared_is_noted_and_adds_up(tmp_path: Path) -> None:
    first = share(tmp_path, about(tmp_path), folders=[Path("/disk/a")], links={"/disk/x": "/disk/a"})
    second = share(tmp_path, first, folders=[Path("/disk/a"), Path("/tmp/b")], links={"/tmp/y": "/env/data/z"})
    assert second.shared == (Path("/disk/a"), Path("/tmp/b"))
    assert second.links == {"/disk/x": "/disk/a", "/tmp/y": "/env/data/z"}
    assert read_description(tmp_path) == second


@pytest.mark.parametrize(
    "path",
    ["/", "/env", "/env/data/x", "/proc/1", "/dev/shm", "/etc", "/etc/x", "/tmp", "/usr", "/usr/x", "/lib64/x",
     "relative", "/disk/../etc", "/disk//x", "//disk", "/disk/", "/disk/./x", "/disk\0x", "/run"],
)  # fmt: skip
def test_a_link_never_takes_the_place_of_the_environments_own_system(path: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailedError):
        share(tmp_path, about(tmp_path), folders=[], links={path: "/env/data/x"})
    assert not list(tmp_path.iterdir()), "nothing was noted"


@pytest.mark.parametrize(("path", "fits"), [("/usr/local/pgsql/ts", True), ("/usr", False), ("/env/x", False)])
def test_a_folder_that_is_there_can_be_shared_also_below_usr(path: str, fits: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a table
    if fits:
        assert share(tmp_path, about(tmp_path), folders=[Path(path)], links={}).shared == (Path(path),)
    else:
        with pytest.raises(EnvironmentFailedError):
            share(tmp_path, about(tmp_path), folders=[Path(path)], links={})


@pytest.mark.parametrize("path", ["/disk/a/deeper", "/disk", "/disk/x/deeper"])
def test_a_link_inside_or_around_something_that_is_provided_is_refused(path: str, tmp_path: Path) -> None:
    there = share(tmp_path, about(tmp_path), folders=[Path("/disk/a")], links={"/disk/x": "/disk/a"})
    with pytest.raises(EnvironmentFailedError, match="one lies in the other"):
        share(tmp_path, there, folders=[], links={path: "/env/data/z"})
    share(tmp_path, there, folders=[], links={"/disk/ab": "/env/data/z"})


def test_the_description_of_an_environment_made_before_anything_could_be_shared_is_read(tmp_path: Path) -> None:
    share(tmp_path, about(tmp_path), folders=[], links={})
    old = json.loads((tmp_path / "environment.json").read_text())
    del old["shared"], old["links"]
    (tmp_path / "environment.json").write_text(json.dumps(old))
    assert read_description(tmp_path) == about(tmp_path)
