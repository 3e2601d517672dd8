"""Every overlay and component is accepted by a real API server, and asks for no more than it needs."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress.settings import PREFIX, Settings
from tests.contract.deploy.conftest import DEPLOY, Installed

Json = dict[str, Any]
NATIVE = {"openshift-sdn": {"HAWSE_CREATE_NET_NAMESPACES": "false"}, "ovn-kubernetes": {}}
"""The overlays without runners, with what they set beside HAWSE_NETWORK, which is their name."""
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
ROOT = DEPLOY.parent
HARDENED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
WITH_RIGHTS = {"hawse-worker", "hawse-tickets", "hawse-beat", "hawse-watch", "hawse-api"}
OPTIONAL = {
    "monitoring": [
        ("monitoring.coreos.com", "v1", "ServiceMonitor"),
        ("monitoring.coreos.com", "v1", "PrometheusRule"),
    ],
    "cert-manager": [("cert-manager.io", "v1", "Issuer"), ("cert-manager.io", "v1", "Certificate")],
}


def rendered(installed: Installed, folder: Path) -> list[Json]:
    done = installed.kubectl("kustomize", str(folder))
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def pods(items: list[Json]) -> dict[str, Json]:
    """The pod specs of the workloads, by their names."""
    return {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]
        for item in items
        if item["kind"] in {"Deployment", "DaemonSet", "StatefulSet"}
    }


def of_kind(items: list[Json], kind: str) -> list[Json]:
    return [item for item in items if item["kind"] == kind]


def settings_and_profiles(items: list[Json]) -> tuple[list[Json], Json]:
    """The ConfigMaps of settings, and that of ticket profiles."""
    maps = of_kind(items, "ConfigMap")
    (profiles,) = [item for item in maps if item["metadata"]["name"] == "hawse-ticket-profiles"]
    return [item for item in maps if item is not profiles], profiles


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_passes_the_dry_run_on_the_server(with_crds: Installed, overlay: str) -> None:
    """Only the namespace is there before: a dry run cannot put anything into one that it would make itself."""
    with_crds.applied("-f", str(DEPLOY / "base" / "namespace.yaml"))
    done = with_crds.kubectl("apply", "-k", str(DEPLOY / "overlays" / overlay), "--dry-run=server")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(rendered(with_crds, DEPLOY / "overlays" / overlay))


def test_applying_twice_rolls_nothing(installed: Installed) -> None:
    kinds = "deployments,daemonsets,statefulsets,poddisruptionbudgets,networkpolicies"
    generation = ("-o", "jsonpath={range .items[*]}{.kind}/{.metadata.name}: {.metadata.generation}{'\\n'}{end}")
    before = installed.kubectl("get", kinds, "-n", "hawse-system", *generation).stdout
    installed.applied("-k", str(DEPLOY / "overlays" / "runner"))
    assert installed.kubectl("get", kinds, "-n", "hawse-system", *generation).stdout == before
    assert "DaemonSet/hawse-node-runner: 1" in before


@pytest.mark.parametrize("component", OPTIONAL)
def test_an_optional_component_goes_with_the_overlay(installed: Installed, tmp_path: Path, component: str) -> None:
    """Its kinds are another project's: here they are CRDs that take anything, so this shows the rest of it alone."""
    for group, version, kind in OPTIONAL[component]:
        installed.applied("-f", "-", text=yaml.safe_dump(foreign_crd(group, version, kind)))
        name = f"{kind.lower()}s.{group}"
        waited = installed.kubectl("wait", "--for=condition=established", f"crd/{name}", "--timeout=20s")
        assert waited.returncode == 0, waited.stderr
    here = Path(os.path.relpath(DEPLOY, tmp_path))
    overlay = {
        "resources": [str(here / "overlays" / "runner")],
        "components": [str(here / "components" / component)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    items = rendered(installed, tmp_path)
    installed.applied("-k", str(tmp_path), "--dry-run=server")
    if component == "cert-manager":
        for kind in ("Mutating", "Validating"):
            (configuration,) = of_kind(items, f"{kind}WebhookConfiguration")
            injected = configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
            assert injected == "hawse-system/hawse-webhook"


def foreign_crd(group: str, version: str, kind: str) -> Json:
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}},
            ],
        },
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_no_more_rights_than_they_need(installed: Installed, overlay: str) -> None:
    for name, pod in pods(rendered(installed, DEPLOY / "overlays" / overlay)).items():
        (container,) = pod["containers"]
        context = container["securityContext"]
        runner = name == "hawse-node-runner"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert context.items() >= HARDENED.items(), name
        assert context["capabilities"].pop("add", []) == (["NET_ADMIN", "NET_RAW"] if runner else []), name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert pod["securityContext"].get("runAsNonRoot", False) is not runner, name
        assert pod.get("hostNetwork", False) is runner, name
        assert pod["automountServiceAccountToken"] is (name in WITH_RIGHTS), name
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
        assert container["livenessProbe"], name
        assert container["readinessProbe"], name
        host_paths = {volume["hostPath"]["path"] for volume in pod.get("volumes", []) if "hostPath" in volume}
        assert host_paths == ({"/run/openvswitch", "/run/xtables.lock"} if runner else set()), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_tells_and_who_listens_have_one_file_of_profiles_and_secrets_of_their_own(
    installed: Installed, overlay: str
) -> None:
    items = rendered(installed, DEPLOY / "overlays" / overlay)
    there = {item["metadata"]["name"] for item in of_kind(items, "ConfigMap")}
    files, secrets = set(), set()
    for name in ("hawse-tickets", "hawse-api"):
        pod = pods(items)[name]
        (container,) = pod["containers"]
        (variable,) = [item["value"] for item in container["env"] if item["name"] == "HAWSE_TICKET_PROFILES"]
        (mounted,) = [item["mountPath"] for item in container["volumeMounts"] if item["name"] == "tickets"]
        assert variable == f"{mounted}/profiles.yaml"
        (volume,) = [item["projected"]["sources"] for item in pod["volumes"] if item["name"] == "tickets"]
        files |= {source["configMap"]["name"] for source in volume if "configMap" in source}
        secrets |= {source["secret"]["name"] for source in volume if "secret" in source}
    assert len(files) == 1
    assert files <= there
    assert secrets == {"hawse-ticket-secrets", "hawse-ticket-callbacks"}


def test_the_restricted_profile_holds_where_there_are_no_runners(installed: Installed) -> None:
    items = rendered(installed, DEPLOY / "overlays" / "openshift-sdn")
    (namespace,) = of_kind(items, "Namespace")
    enforced = "pod-security.kubernetes.io/enforce"
    assert namespace["metadata"]["labels"][enforced] == "restricted"
    place = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "profile", "labels": {enforced: "restricted"}},
    }
    installed.applied("-f", "-", text=yaml.safe_dump(place))
    for name, pod in pods(items).items():
        spec = {key: value for key, value in pod.items() if key != "serviceAccountName"}
        claimed = {"name": "data", "emptyDir": {}}  # for what a StatefulSet would claim
        spec["volumes"] = [*spec["volumes"], claimed] if name == "hawse-redis" else spec["volumes"]
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "profile"}, "spec": spec}
        installed.applied("-f", "-", "--dry-run=server", text=yaml.safe_dump(manifest))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_processes_are_started_with_settings_and_commands_that_exist(installed: Installed, overlay: str) -> None:
    items = rendered(installed, DEPLOY / "overlays" / overlay)
    known = {f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(Settings)}
    settings_maps, profiles = settings_and_profiles(items)
    assert profiles["data"] == {"profiles.yaml": "profiles: []"}
    for settings in settings_maps:
        assert settings["data"].keys() <= known, settings["metadata"]["name"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    secrets = set()
    for name, pod in pods(items).items():
        if name == "hawse-redis":
            continue
        (container,) = pod["containers"]
        assert {variable["name"] for variable in container["env"]} <= known, name
        assert container["image"] in {"hawse/webhook", "hawse/api", "hawse/workers", "hawse/node-runner"}, name
        assert set(container.get("command", ())) <= scripts.keys(), name
        secrets |= {
            variable["valueFrom"]["secretKeyRef"]["name"]
            for variable in container["env"]
            if "secretKeyRef" in variable.get("valueFrom", {})
        }
    assert len(secrets) == (3 if overlay in NATIVE else 4)


def test_there_are_two_of_each_and_they_never_go_at_once(installed: Installed) -> None:
    items = rendered(installed, DEPLOY / "overlays" / "runner")
    budgets = {
        item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        for item in of_kind(items, "PodDisruptionBudget")
    }
    roles = {"webhook", "worker", "tickets", "beat", "watch", "api"}
    replicas = {item["metadata"]["name"]: item["spec"]["replicas"] for item in of_kind(items, "Deployment")}
    assert replicas == {f"hawse-{role}": 2 for role in roles}
    assert budgets == roles


@pytest.mark.parametrize("overlay", NATIVE)
def test_beside_openshift_nothing_of_openshifts_is_touched(installed: Installed, overlay: str) -> None:
    items = rendered(installed, DEPLOY / "overlays" / overlay)
    crds = {item["spec"]["group"] for item in of_kind(items, "CustomResourceDefinition")}
    assert crds == {"egress.hawse.dev"}
    assert of_kind(items, "DaemonSet") == []
    ((settings,), _) = settings_and_profiles(items)
    assert settings["data"].items() >= {"HAWSE_NETWORK": overlay, **NATIVE[overlay]}.items()
