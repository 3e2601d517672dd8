"""The way of those commands that speak to a cluster itself, and not to Hawse's API."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from egress.adapters.cluster import Cluster, ConfigError


class ClusterError(click.ClickException):
    """It is not said which cluster is meant, or not in a way that can be used."""

    exit_code = 2


def on_cluster(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `--kubeconfig`."""
    return click.option(
        "--kubeconfig",
        metavar="FILE",
        envvar="HAWSE_KUBECONFIG",
        default="",
        help="The cluster. Without it the one that kubectl would use.",
    )(function)


def reached(kubeconfig: str) -> Cluster:
    """The cluster of this file, or of kubectl's. ClusterError."""
    try:
        return Cluster(kubeconfig or kubeconfig_of(os.environ))
    except ConfigError as error:
        raise ClusterError(f"{error}; name another with --kubeconfig") from None


def kubeconfig_of(environ: Mapping[str, str]) -> str:
    """The file that kubectl would read; "" for the service account of the pod in which this runs."""
    if environ.get("KUBECONFIG"):
        return environ["KUBECONFIG"]
    own = os.path.expanduser("~/.kube/config")
    return "" if "KUBERNETES_SERVICE_HOST" in environ and not os.path.exists(own) else own
