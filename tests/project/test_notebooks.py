"""The notebooks of the examples run from top to bottom, and give what they show."""

import copy
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


class ThisPython(AsyncKernelManager):
    """Starts kernels of this interpreter, whichever are installed for the user."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    for cell in notebook.cells:
        # Times differ from one machine to another.
        cell.metadata.pop("execution", None)
    client = NotebookClient(
        notebook, timeout=300, kernel_manager_class=ThisPython, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def outputs(notebook: nbformat.NotebookNode) -> list[list[dict[str, str]]]:
    """Outputs of the cells, of pictures their type alone: fonts draw them."""
    return [
        [
            {kind: "" if kind.startswith("image/") else value for kind, value in one.get("data", one).items()}
            for one in cell.get("outputs", ())
        ]
        for cell in notebook.cells
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_gives_what_it_shows(path, tmp_path, request):
    shown = nbformat.read(path, as_version=4)
    notebook = copy.deepcopy(shown)
    run(notebook, tmp_path)
    if request.config.getoption("--regenerate"):
        nbformat.write(notebook, path)
        pytest.skip(f"{path.name}: written anew")
    assert outputs(notebook) == outputs(shown), f"{path.name} shows something else; see --regenerate"
    kinds = {kind for cell in outputs(notebook) for output in cell for kind in output}
    assert {"text/html", "image/png"} <= kinds
    assert not {"ename", "stderr"} & kinds
