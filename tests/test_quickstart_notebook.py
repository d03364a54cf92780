"""The notebook runs from top to bottom, says nothing on stderr, and is stored without output."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "simulations" / "quickstart.ipynb"
SMALL = (
    "train.rounds=2 train.local_steps=1 train.expected_batch_size=2 train.threads=1 workers=0 "
    "data.clients=4 data.keep_rate=0.02 secagg.threshold=3 "
    "eval.examples=20 eval.progress_examples=10 eval.samples=1"
)


def of_kind(notebook, kind):
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == kind
    ]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run of two small rounds, by a kernel of this interpreter."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("FEDATTN_SET", SMALL)
        patch.setenv("FEDATTN_RUNS", str(folder / "runs"))
        patch.setenv("OMP_NUM_THREADS", "1")
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(
            notebook,
            timeout=240,
            kernel_name="python3",
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        ).execute()
    return notebook, folder


def test_every_cell_runs_and_warns_of_nothing(executed):
    notebook, _ = executed
    assert [each.text for each in of_kind(notebook, "stream") if each.name == "stderr"] == []
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_it_shows_a_plan_a_run_an_audit_curves_a_reply_and_attention(executed):
    notebook, folder = executed
    said = "".join(each.text for each in of_kind(notebook, "stream"))
    (run_dir,) = (folder / "runs").iterdir()
    report = json.loads((run_dir / "report.json").read_text())
    assert "whoever breaks secure aggregation" in said
    assert "round 2: epsilon" in said
    assert f"{report['quality']['bpb_before']:.3f} ->" in said
    assert "FAIL" not in said
    (figure,) = [each for each in of_kind(notebook, "display_data") if "image/png" in each.data]
    assert len(figure.data["image/png"]) > 5000
    (heat,) = [each for each in of_kind(notebook, "execute_result") if "text/html" in each.data]
    assert "exam" in heat.data["text/html"]


def test_it_is_stored_without_output_and_without_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None
               for cell in notebook.cells if cell.cell_type == "code")  # fmt: skip
    assert str(ROOT) not in NOTEBOOK.read_text("utf-8")
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
