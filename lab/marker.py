"""How to know that an API server asks a webhook by now: it heeds a new configuration a moment after it has stored it.

A configuration gets one more webhook, which fails for the objects of one label; as soon as such an object is refused,
the whole configuration is in effect.
"""

from lab.kube import Json, Kube, KubeError

_LABEL = "lab.hawse.dev/marker"


def webhook(label: str) -> Json:
    """The additional webhook: nobody answers at its address, so that it refuses what carries `label`."""
    return {
        "name": "marker.lab.hawse.dev",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"url": "https://127.0.0.1:1/marker"},
        "objectSelector": {"matchLabels": {_LABEL: label}},
        "rules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]},
        ],
    }


def in_effect(kube: Kube, label: str) -> bool:
    """Whether the API server asks the webhooks of the configuration that has `label`."""
    try:
        kube.create(config_map(label), query="?dryRun=All")
    except KubeError as error:
        return error.code == 500
    return False


def config_map(label: str) -> Json:
    """An object that is refused once the configuration is in effect; to be created as a dry run."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker", "labels": {_LABEL: label}}}
