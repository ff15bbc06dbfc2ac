"""What `deploy/` promises: a valid Compose file, pinned images, nothing open to the network."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from services.stage_service.settings import StageSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_TEXT = (ROOT / "deploy" / "compose.yaml").read_text("utf-8")
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
BUILD_STAGES = {
    name: image for image, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
}
PINNED = re.compile(r"^[\w./-]+:\d+\.\d+(\.\d+)?[\w.-]*$")

every_service = pytest.mark.parametrize("name", sorted(SERVICES))


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Return what the Compose Specification's schema finds wrong."""
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_compose_file_is_valid() -> None:
    """The Compose Specification's own schema accepts the file."""
    assert schema_errors(COMPOSE) == []


def test_a_misspelt_key_would_be_found() -> None:
    """The schema is one that refuses: a planted mistake is found."""
    assert schema_errors({"services": {"stage": {"image": "x", "portz": []}}})


@every_service
def test_ports_are_bound_to_loopback_only(name: str) -> None:
    """No port of a container is reachable from outside this machine."""
    assert SERVICES[name].get("network_mode") is None
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port), port


@every_service
def test_containers_are_hardened(name: str) -> None:
    """Read-only root, no capabilities, no way to gain privileges."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]


@every_service
def test_image_is_built_here_or_pinned(name: str) -> None:
    """An image is a target of our Dockerfile, or has an exact version."""
    service = SERVICES[name]
    if "build" in service:
        assert service["build"]["target"] in BUILD_STAGES
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert PINNED.match(service["image"]), service["image"]


@every_service
def test_dependencies_exist_and_are_waited_for(name: str) -> None:
    """Who is waited for has a health check, or ends by itself."""
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"


def test_named_volumes_and_networks_are_declared() -> None:
    """Volumes and networks exist; database and broker have no way out."""
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    for name in ("postgres", "kafka"):
        assert SERVICES[name]["networks"] == ["data"]
        assert "ports" not in SERVICES[name]
    assert COMPOSE["networks"]["data"]["internal"] is True


def test_secrets_have_no_default() -> None:
    """A password that is not set stops Compose."""
    uses = re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|KEY)\w*)([^}]*)\}", COMPOSE_TEXT)
    assert uses
    assert all(rest.startswith(":?") for _, rest in uses)


def test_dockerfile_starts_from_pinned_images() -> None:
    """Every base image has an exact version."""
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert image in BUILD_STAGES or PINNED.match(image), image


@pytest.mark.parametrize("target", ["stage", "notifier"])
def test_dockerfile_target_runs_its_service_without_root(target: str) -> None:
    """Both targets run as uid 10001 and say when they are ill."""
    runtime, body = DOCKERFILE.split(f"FROM runtime AS {target}\n")
    body = body.split("\nFROM ")[0]
    assert f'CMD ["baton", "serve", "{target}"]' in body
    assert "/livez" in body
    assert "\nUSER 10001:10001\n" in runtime.split("AS runtime\n")[1]
    assert "USER" not in body


def test_docker_context_holds_what_the_dockerfile_copies() -> None:
    """The build context is what is copied, and nothing else."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied: set[str] = set()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        copied |= set(sources.split())
    assert copied == allowed


def test_every_variable_is_explained_in_the_example() -> None:
    """Each setting has its line in `.env.example`."""
    example = (ROOT / ".env.example").read_text("utf-8")
    explained = set(re.findall(r"^#? ?(\w+)=", example, re.MULTILINE))
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    asked |= set(re.findall(r"^ +(BATON_\w+):", COMPOSE_TEXT, re.MULTILINE))
    asked |= {f"BATON_{name.upper()}" for name in StageSettings.model_fields}
    assert asked - explained == set()


def test_versions_that_are_named_twice_agree() -> None:
    """Kafka, uv and ruff have one version each, wherever it is named."""
    pom = (ROOT / "deploy" / "kafka" / "pom.xml").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    hooks = YAML(typ="safe", pure=True).load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    revisions = {repo["repo"].rsplit("/", 1)[1]: repo["rev"] for repo in hooks["repos"]}
    locked = {
        package["name"]: package["version"]
        for package in tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))["package"]
    }
    assert f"<kafka.version>{SERVICES['kafka']['image'].split(':')[1]}</kafka.version>" in pom
    uv = BUILD_STAGES["uv"].split(":")[1]
    assert f"UV_VERSION := {uv}\n" in makefile
    assert revisions["uv-pre-commit"] == uv
    assert revisions["ruff-pre-commit"] == f"v{locked['ruff']}"
