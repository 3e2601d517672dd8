"""msgspec learns the forms of manifests, requests and answers before any thread reads into one: a second thread that
came meanwhile would end the process."""

import ast
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from egress.forms import learn

ROOT = Path(__file__).parents[3]
MODULES = sorted(
    path.relative_to(ROOT)
    for package in ("egress", "workers", "webhook", "node_runner")
    for path in (ROOT / package).rglob("*.py")
    if "msgspec" in path.read_text()
)
THREADS = """
import importlib, sys, threading
import msgspec
sys.setswitchinterval(1e-6)  # threads take turns in the middle of everything
module = importlib.import_module(sys.argv[1])
forms = [form for form in vars(module).values() if isinstance(form, type) and issubclass(form, msgspec.Struct)]
forms.reverse()  # those that hold others, which take long to be learned, are made after them
together = threading.Barrier(8)
def read():
    together.wait()
    for form in forms:
        try:
            msgspec.convert({"metadata": {"name": "a"}, "spec": {}}, form)
        except msgspec.ValidationError:
            pass
threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("module", ["egress.adapters.manifests", "egress.adapters.egressips"])
def test_threads_that_read_into_the_same_forms_at_once_do_no_harm(module: str) -> None:
    for _ in range(5):
        assert subprocess.run([sys.executable, "-c", THREADS, module], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_form_that_is_read_into_is_learned_where_it_is_made(path: Path) -> None:
    """What `msgspec.convert`, `msgspec.json.decode`, or a function of ours with a parameter for the form, is given."""
    if path.parts[:2] == ("egress", "cli"):
        return  # a command has one thread
    tree = ast.parse((ROOT / path).read_text())
    made = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    given, learned = set(), set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        names = {
            name.id
            for argument in (*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "type"))
            for name in ([argument] if isinstance(argument, ast.Name) else _arguments(argument))
        }
        match ast.unparse(call.func):
            case "learn" | "msgspec.json.Decoder":
                learned |= names
            case "_convert" | "_decoded" | "_body" | "msgspec.convert" | "msgspec.json.decode":
                given |= names & made
            case other if other.endswith(".read"):
                given |= names & made
    assert given <= learned, f"give learn() of egress.forms {', '.join(sorted(given - learned))}, where they are made"


def _arguments(node: ast.expr) -> list[ast.Name]:
    """The names in the brackets of a generic, `tuple[Form, ...]`."""
    return [name for name in ast.walk(node) if isinstance(name, ast.Name)] if isinstance(node, ast.Subscript) else []


def test_what_is_no_form_is_refused() -> None:
    with pytest.raises(TypeError):
        learn(msgspec.json)
