"""The file of ticket profiles: what is taken, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress.objects import Event
from egress.ticket_profiles import Profiles, ProfilesError, ServiceNowProfile, load, secrets

WEBHOOK = "type: webhook, name: desk, url: 'https://desk.example/', secretFiles: [/s/one]"
SERVICENOW = "type: servicenow, name: desk, url: 'https://x.service-now.com'"
JIRA = "type: jira, name: desk, url: 'https://x.atlassian.net', tokenFile: /s/t, project: NET"


def _file(where: Path, text: str) -> str:
    path = where / "profiles.yaml"
    path.write_text(text)
    return str(path)


def test_no_file_is_no_profile() -> None:
    assert load("") == Profiles()


def test_an_empty_file_is_no_profile(tmp_path: Path) -> None:
    assert load(_file(tmp_path, "# nothing yet\n")) == Profiles()


def test_defaults(tmp_path: Path) -> None:
    profiles = load(_file(tmp_path, f"profiles: [{{{SERVICENOW}, tokenFile: /s/t, poll: {{}}}}]"))
    profile = profiles.get("desk")
    assert isinstance(profile, ServiceNowProfile)
    assert profile.events == (Event.ASSIGNED, Event.RELEASED, Event.CONFLICT)
    assert (profile.table, profile.timeout, profile.settle, profile.answers) == ("change_request", 10.0, 30.0, True)
    assert profiles.get("nobody") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("profiles: [", "while parsing"),
        ("[]", "Expected `object`, got `array`"),
        ("profile: []", "unknown field `profile`"),
        ("profiles: [{name: desk}]", r"missing required field `type` - at `\$.profiles\[0\]`.*"),
        ("profiles: [{type: email, name: desk}]",
         r"'email' - at `\$.profiles\[0\].type`; write webhook, servicenow, jira, address-list or console"),
        (f"profiles: [{{{WEBHOOK}, secret: abc}}]", r"unknown field `secret` - at `\$.profiles\[0\]`"),
        (f"profiles: [{{{WEBHOOK}, events: [moved, lost]}}]",
         r"'lost' - at `\$.profiles\[0\].events\[1\]`; write some of assigned, moved, conflict, released, quaran"),
        ("profiles: [{type: console, name: Desk 1}]", r"profiles\[0\].name`; write lower-case letters"),
        ("profiles: [{type: webhook, name: d, url: 'https://me:pw@x/', secretFiles: [/s]}]",
         r"profiles\[0\].url`; write http:// or https:// and no credentials"),
        ("profiles: [{type: webhook, name: d, url: 'ftp://x/', secretFiles: [/s]}]", "write http:// or https://"),
        ("profiles: [{type: webhook, name: d, url: 'https://[::1', secretFiles: [/s]}]", "url .* is none; write https://"),
        ("profiles: [{type: webhook, name: d, url: 'https://x:99999/', secretFiles: [/s]}]", "url .* is none; write"),
        ("profiles: [{type: servicenow, name: d, url: 'https://x', fields: {due: 2026-02-30}}]", "day is out of range"),
        ("[" * 5000, "recursion"),
        ("profiles: [{type: webhook, name: d, url: 'https://x/'}]", "missing required field `secretFiles`"),
        ("profiles: [{type: webhook, name: d, url: 'https://x/', secretFiles: []}]",
         r"profiles\[0\].secretFiles`; write one or two paths of files"),
        (f"profiles: [{{{WEBHOOK}, callback: {{secretFiles: [/1, /2, /3]}}}}]",
         r"profiles\[0\].callback.secretFiles`; write one or two paths"),
        (f"profiles: [{{{WEBHOOK}, timeout: 0}}]", r"profiles\[0\].timeout`; write seconds, 120 at most"),
        (f"profiles: [{{{WEBHOOK}, timeout: .inf}}]", r"profiles\[0\].timeout`; write seconds, 120 at most"),
        (f"profiles: [{{{WEBHOOK}, timeout: .nan}}]", r"profiles\[0\].timeout`; write seconds, 120 at most"),
        (f"profiles: [{{{WEBHOOK}, proxy: 'https://p'}}]", r"profiles\[0\].proxy`; write http://HOST:PORT"),
        (f"profiles: [{{{JIRA}, settle: -1}}]", r"profiles\[0\].settle`; write seconds, 3600 at most"),
        (f"profiles: [{{{JIRA}, poll: {{interval: 0}}}}]", r"poll.interval`; write seconds, 86400 at most"),
        (f"profiles: [{{{JIRA}, release: never}}]", r"profiles\[0\].release`; write same or own"),
        (f"profiles: [{{{JIRA.replace('NET', 'net 1')}}}]", r"profiles\[0\].project`; write the project's key"),
        (f"profiles: [{{{JIRA}, approved: [Done], rejected: [Done]}}]",
         "profile desk: Done is under approved and rejected; leave it under one"),
        (f"profiles: [{{{SERVICENOW}}}]", "profile desk: give it either tokenFile, or usernameFile and passwordFile"),
        (f"profiles: [{{{SERVICENOW}, tokenFile: /s, usernameFile: /u}}]", "profile desk: give it either"),
        (f"profiles: [{{{SERVICENOW}, usernameFile: /u}}]", "profile desk: usernameFile and passwordFile go together"),
        (f"profiles: [{{{SERVICENOW}, tokenFile: /s, table: 'a/b'}}]", r"table`; write the table's name"),
        ("profiles: [{type: console, name: a}, {type: console, name: a}]", "profile a is there twice"),
        ("lists: [{name: a}, {name: a}]", "list a is there twice"),
        ("lists: [{name: A}]", r"lists\[0\].name`; write lower-case letters"),
        ("lists: [{name: a, auth: {usernameFile: /u}}]", "missing required field `passwordFile`"),
        ("dashboard: hawse.example", r"at `\$.dashboard`; write http:// or https://"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_to_write(tmp_path: Path, text: str, says: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ProfilesError, match=says) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ProfilesError, match=r"/nowhere/profiles.yaml: .*No such file"):
        load("/nowhere/profiles.yaml")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_bytes(b"\xff\xfe\x00profiles: []")
    with pytest.raises(ProfilesError, match=f"{path}: "):
        load(str(path))


def test_secrets_come_in_their_order_and_without_the_line_end(tmp_path: Path) -> None:
    for name, text in (("b", "second one\n"), ("a", " first\r\n")):
        (tmp_path / name).write_text(text)
    assert secrets([str(tmp_path / "a"), str(tmp_path / "b")]) == ["first", "second one"]


@pytest.mark.parametrize("content", [b"", b"\n", b"hidden\nwords", b"hidden\x00", b"hidden\xff"])
def test_what_a_secrets_file_holds_is_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ProfilesError, match=f"the secret {path} is ") as caught:
        secrets([str(path)])
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None
