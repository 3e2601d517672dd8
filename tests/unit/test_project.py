"""What the project says of itself: settings and their page, lock files, container files, links, what is installed."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.cli.client import VARIABLES
from egress.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("egress", "webhook", "workers", "node_runner")
ROLES = ("webhook", "api", "workers", "node-runner")
LOCKS = ("dev", *ROLES)
SCRIPTS = Path(sys.executable).parent

_PINNED = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)
_SETTING_ROW = re.compile(rf"^\| `({PREFIX}[A-Z_]+)` \| (\S+) \| .+ \|$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _text(path: str) -> str:
    return (ROOT / path).read_text()


def _project() -> dict[str, Any]:
    return tomllib.loads(_text("pyproject.toml"))


def _compose() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load(_text("docker-compose.yml"))
    return compose


def _pins(lock: str) -> dict[str, str]:
    return dict(_PINNED.findall(_text(f"requirements/{lock}.lock")))


def _documents() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    yield from ROOT.glob("docs/**/*.md")


# The settings


def test_every_setting_is_explained_with_its_default() -> None:
    fields = {
        f"{PREFIX}{field.name.upper()}": f"`{str(field.default).lower() if field.type == 'bool' else field.default}`"
        for field in dataclasses.fields(Settings)
    }
    wanted = {name: "(none)" if default == "``" else default for name, default in fields.items()}
    rows = _SETTING_ROW.findall(_text("docs/settings.md"))
    assert dict(rows) == wanted
    assert len(rows) == len(wanted), "a setting is explained twice"


@pytest.mark.parametrize("path", [*_documents()], ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_settings_that_exist(path: Path) -> None:
    known = {f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(Settings)} | set(VARIABLES.values())
    assert set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", path.read_text())) <= known


# The container files


def test_compose_and_makefile_build_targets_that_exist() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", _text("Dockerfile"), re.MULTILINE))
    services = _compose()["services"]
    targets = {service["build"]["target"] for service in services.values() if "build" in service}
    assert targets == set(ROLES)
    assert targets <= stages
    for service in services.values():
        if "build" in service:
            assert service["image"] == f"hawse/{service['build']['target']}"
    assert f"for role in {' '.join(ROLES)}; do docker build --target" in _text("Makefile")


def test_images_start_commands_of_the_wheel() -> None:
    scripts = _project()["project"]["scripts"]
    commands = set(re.findall(r'^CMD \["([^"]+)"\]$', _text("Dockerfile"), re.MULTILINE))
    commands |= {
        service["command"][0]
        for service in _compose()["services"].values()
        if service.get("image", "").startswith("hawse/") and "command" in service
    }
    assert commands <= set(scripts)
    assert commands == set(scripts) - {"hawse", "kubectl-hawse"}  # a person's, not a pod's


def test_images_are_built_of_what_the_context_has() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", _text("Dockerfile"), re.MULTILINE)
    sources = {source for line in copied for source in line.split() if not source.startswith("--")}
    sources |= {f"requirements/{role}.lock" for role in ROLES}
    admitted = [line[1:] for line in _text(".dockerignore").splitlines() if line.startswith("!")]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(pattern.rstrip("/")) for pattern in admitted), source
    assert set(PACKAGES) <= sources


def test_compose_sets_only_settings_that_exist() -> None:
    known = {f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(Settings)}
    for name, service in _compose()["services"].items():
        assert set(service.get("environment", {})) <= known, name


def test_compose_grants_no_more_than_needed() -> None:
    for name, service in _compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["healthcheck"]["test"], name
        assert service.get("cap_add", []) == (["NET_ADMIN", "NET_RAW"] if name == "node-runner" else []), name
        assert not service.get("privileged"), name


@pytest.mark.parametrize("service", ["webhook", "worker", "tickets", "beat", "watch", "api", "node-runner"])
def test_health_checks_are_python_that_compiles(service: str) -> None:
    kind, program, option, source = _compose()["services"][service]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    compile(source, service, "exec")


# The lock files


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_have_hashes_and_no_addresses(lock: str) -> None:
    text = _text(f"requirements/{lock}.lock")
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "an option, such as an index"
    requirements = re.split(r"\n(?=[a-z0-9])", text)
    assert len(requirements) == len(_pins(lock))
    for requirement in requirements:
        assert " --hash=sha256:" in requirement, requirement.splitlines()[0]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_runs_what_was_tested(role: str) -> None:
    different = _pins(role).items() - _pins("dev").items()
    assert not different, f"not so in dev.lock: {sorted(different)}; run `make lock`"


def test_a_role_carries_no_more_than_its_own() -> None:
    assert not _pins("webhook").keys() & {"kubernetes", "pyroute2", "ovs"}
    assert not _pins("api").keys() & {"pyroute2", "ovs"}
    assert not _pins("workers").keys() & {"flask", "granian", "pyroute2", "ovs"}
    assert not _pins("node-runner").keys() & {"flask", "granian", "kubernetes"}


def test_the_parser_of_flows_comes_with_what_it_imports() -> None:
    assert _pins("node-runner").keys() >= {"ovs", "netaddr", "pyparsing"}  # `ovs[flow]`, not `ovs`


# What is installed


def test_the_version_is_the_projects() -> None:
    done = subprocess.run([SCRIPTS / "hawse", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"hawse {_project()['project']['version']}\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_installed_wheel_is_what_is_tested(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == Path(sysconfig.get_path("purelib"), package)


# The documents


def test_the_readme_begins_with_the_two_commands() -> None:
    first_screen = _text("README.md").splitlines()[:45]
    assert any(line.startswith("make demo ") for line in first_screen)
    assert any(line.startswith("make test ") for line in first_screen)


@pytest.mark.parametrize("path", [*_documents()], ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link} leads nowhere"
        if fragment:
            assert fragment in {_anchor(title) for title in _HEADING.findall(target.read_text())}, link


def _anchor(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("0*.md"))
    assert [name for name in pages if f"]({name})" not in index] == []
