"""`scripts/bench_devices.py` runs, and what it reads from compiled programs is what is promised."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flax")
pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_devices.py"


@pytest.mark.process
def test_quick_run_agrees_with_the_law(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"table.md", "scaling.png"} <= {path.name for path in tmp_path.iterdir()}
    assert [(r["kind"], r["devices"], r["n"]) for r in results["scaling"]] == [
        ("strong", 1, 8),
        ("strong", 2, 8),
        ("weak", 1, 4),
        ("weak", 2, 8),
    ]
    for record in results["scaling"]:
        assert record["evaluations"] == [2 * record["n"] // record["devices"]] * record["devices"]
        assert "seconds" not in record["at_once"]
    one, two = (record["at_once"]["flops"] for record in results["scaling"][:2])
    assert 0.5 <= two / one < 0.51
    assert results["traffic"]
    for record in results["traffic"]:
        assert record["bytes"] == record["predicted_bytes"]
