"""Settings from the environment."""

import dataclasses
from ipaddress import IPv4Network, IPv6Network

import pytest

from egress.settings import Settings, SettingsError, load


def test_nothing_set_is_the_defaults() -> None:
    assert load({}) == Settings()
    assert load({"PATH": "/bin", "hawse_redis_url": "x"}) == Settings()


def test_each_type_is_read() -> None:
    current = load(
        {
            "HAWSE_REDIS_URL": "unix:///x",
            "HAWSE_LISTEN_PORT": "9443",
            "HAWSE_SWEEP_INTERVAL": "0.5",
            "HAWSE_CREATE_NET_NAMESPACES": "false",
        }
    )
    assert (current.redis_url, current.listen_port, current.sweep_interval) == ("unix:///x", 9443, 0.5)
    assert current.create_net_namespaces is False


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Settings) if not isinstance(field.default, str)]
)
def test_a_wrong_value_names_its_variable(name: str) -> None:
    variable = f"HAWSE_{name.upper()}"
    with pytest.raises(SettingsError, match=rf"{variable}\b"):
        load({variable: "nonsense"})


@pytest.mark.parametrize("variable", ["HAWSE_REDIS_ULR", "HAWSE_LISEN_PORT", "HAWSE_", "HAWSE_layout"])
def test_an_unknown_variable_is_named(variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        load({variable: "8443"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HAWSE_WEBHOOK_SERVICE_HOST", "10.0.0.1"),
        ("HAWSE_WEBHOOK_SERVICE_PORT", "443"),
        ("HAWSE_WEBHOOK_SERVICE_PORT_HTTPS", "443"),
        ("HAWSE_WEBHOOK_PORT", "tcp://10.0.0.1:443"),
        ("HAWSE_WEBHOOK_PORT_443_TCP", "tcp://10.0.0.1:443"),
        ("HAWSE_WEBHOOK_PORT_443_TCP_PROTO", "tcp"),
        ("HAWSE_WEBHOOK_PORT_443_TCP_PORT", "443"),
        ("HAWSE_WEBHOOK_PORT_443_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_kubernetes_says_of_a_service_named_hawse_is_no_setting(variable: str, value: str) -> None:
    assert load({variable: value}) == Settings()


def test_the_layout_is_of_the_networks_and_a_wrong_one_is_named() -> None:
    layout = load(
        {"HAWSE_CLUSTER_NETWORKS": "10.128.0.0/14, 10.4.0.0/16, fd01::/48", "HAWSE_EGRESS_TABLE": "101"}
    ).layout()
    assert layout.cluster_networks == (
        IPv4Network("10.128.0.0/14"),
        IPv4Network("10.4.0.0/16"),
        IPv6Network("fd01::/48"),
    )
    assert (layout.networks(4), layout.networks(6)) == (("10.128.0.0/14", "10.4.0.0/16"), ("fd01::/48",))
    assert layout.egress_table == 101
    for text in ("", "10.128.0.1/14", "x", "10.0.0.0/8,"):
        with pytest.raises(SettingsError, match="HAWSE_CLUSTER_NETWORKS"):
            Settings(cluster_networks=text).layout()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("iptables", "ipchains"),
        ("bridge", "br0; reboot"),
        ("bridge", ""),
        ("bridge", "b" * 16),
        ("vxlan_interface", "a/b"),
        ("tun_interface", "-x"),
        ("masquerade_chain", "A B"),
        ("masquerade_chain", "-j"),
        ("redis_url", "localhost:6379"),
        ("redis_url", "http://x"),
        ("redis_url", "redis://x:port/0"),
        ("reconcile_interval", "0"),
        ("sweep_interval", "-1"),
        ("check_interval", "nan"),
    ],
)
def test_what_cannot_be_meant_names_its_variable(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"^HAWSE_{name.upper()}\b"):
        load({f"HAWSE_{name.upper()}": text})


@pytest.mark.parametrize(
    "url",
    [
        "redis://r:6379/0",
        "redis://r",
        "rediss://user:p%40ss@r.example:6379/2?ssl_cert_reqs=none",
        "redis://:secret@127.0.0.1:6379/0",
        "redis://[::1]:6379/0",
        "unix:///run/valkey.sock",
        "unix:///run/valkey.sock?db=1",
    ],
)
def test_urls_of_redis(url: str) -> None:
    assert load({"HAWSE_REDIS_URL": url}).redis_url == url


def test_names_as_clusters_have_them() -> None:
    names = {"HAWSE_BRIDGE": "br-int", "HAWSE_TUN_INTERFACE": "ovn-k8s-mp0", "HAWSE_MASQUERADE_CHAIN": "POSTROUTING"}
    assert load({**names, "HAWSE_LOG_LEVEL": "DEBUG"}).bridge == "br-int"


@pytest.mark.parametrize("variable", ["HAWSE_LISTEN_PORT", "HAWSE_HEALTH_PORT"])
@pytest.mark.parametrize("text", ["-1", "65536"])
def test_a_port_is_one(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"{variable} must be a port"):
        load({variable: text})


def test_a_lease_outlasts_the_leaders_last_renewal() -> None:
    with pytest.raises(SettingsError, match="HAWSE_LEASE_DURATION must be more than"):
        load({"HAWSE_LEASE_DURATION": "13.9"})
    assert load({"HAWSE_LEASE_DURATION": "14.1"}).lease_duration == 14.1
