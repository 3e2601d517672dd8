from pathlib import Path

import pytest

from lab.apiserver import journal as journal_module
from lab.apiserver.errors import ApiError
from lab.apiserver.journal import Journal, JournalInUse
from lab.apiserver.objects import Json
from lab.apiserver.store import Stale, Store

PLACE = "/configmaps"


def _object(name: str, **data: object) -> Json:
    return {"metadata": {"namespace": "d", "name": name}, "data": data}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_journal_belongs_to_one_server(path: Path) -> None:
    journal = Journal.open(path)
    with pytest.raises(JournalInUse):
        Journal.open(path)
    journal.close()
    Journal.open(path).close()


def test_a_store_comes_back_with_its_objects_and_versions_and_a_new_history(path: Path) -> None:
    store = Store(Journal.open(path), 10)
    first = store.replace(PLACE, None, _object("a"))
    store.replace(PLACE, first, _object("a", x="1"))
    second = store.replace(PLACE, None, _object("b"))
    store.remove(PLACE, second, second)
    store.close()
    again = Store(Journal.open(path), 10)
    assert (again.revision, again.all(PLACE)) == (4, store.all(PLACE))
    with pytest.raises(ApiError) as expired:
        again.changes(PLACE, 3)
    assert expired.value.code == 410
    again.replace(PLACE, None, _object("c"))
    assert [(str(event.type), event.revision) for event in again.changes(PLACE, 4)] == [("ADDED", 5)]
    again.close()


def test_a_rewritten_journal_keeps_the_state_and_forgets_the_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_WORTH_REWRITING", 5)
    store = Store(Journal.open(path), 100)
    stored = store.replace(PLACE, None, _object("a"))
    for number in range(9):
        stored = store.replace(PLACE, stored, _object("a", n=str(number)))
    store.close()
    again = Store(Journal.open(path), 100)
    assert len(path.read_bytes().splitlines()) == 2
    assert (again.revision, again.all(PLACE)) == (10, [stored])
    assert again.changes(PLACE, 10) == []
    with pytest.raises(ApiError) as expired:
        again.changes(PLACE, 9)
    assert expired.value.code == 410
    later = again.replace(PLACE, again.get(PLACE, "d", "a"), _object("a"))
    assert later["metadata"]["resourceVersion"] == "11"
    again.close()
    third = Store(Journal.open(path), 100)
    assert (third.revision, third.all(PLACE)) == (11, [later])
    third.close()


def test_only_the_object_that_was_read_can_be_replaced(path: Path) -> None:
    store = Store(Journal.open(path), 10)
    first = store.replace(PLACE, None, _object("a"))
    with pytest.raises(Stale):
        store.replace(PLACE, None, _object("a"))
    store.replace(PLACE, first, _object("a", x="1"))
    with pytest.raises(Stale):
        store.replace(PLACE, first, _object("a", x="2"))
    with pytest.raises(Stale):
        store.remove(PLACE, first, first)
    store.close()
