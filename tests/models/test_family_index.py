"""The index of families: it holds what the modules say, and finds a family without importing the others."""

import json
import pkgutil
import subprocess
import sys

import pytest

from stagemeter.core.errors import StagemeterError
from stagemeter.models import families as package
from stagemeter.models.families import INDEX, families, family_named


def test_the_index_holds_what_the_modules_say():
    index = json.loads(INDEX.read_text(encoding="utf-8"))
    modules = [module.name + (".family" if module.ispkg else "") for module in pkgutil.iter_modules(package.__path__)]
    assert [entry["module"] for entry in index.values()] == modules, "run python docs/defaults.py"
    for name, family in families().items():
        entry = {"module": index[name]["module"], "model_types": [*family.model_types], "shipped": [*family.shipped]}
        assert (name, index[name]) == (family.name, entry), "run python docs/defaults.py"


def test_a_family_is_found_without_the_others():
    code = (
        "import sys; from stagemeter.models.lookup import describe_model; describe_model('llama-3.1-8b'); "
        "print(*(name for name in sys.modules if name.startswith('stagemeter.models.families.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["stagemeter.models.families.llama"]


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(StagemeterError, match=r"^family: 'nope' is unknown\. Install the package .* llama"):
        family_named("nope")
