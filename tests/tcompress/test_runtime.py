import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from tcompress.runtime import import_onnxruntime
import_onnxruntime().SessionOptions()
print(os.listdir(sys.argv[1]))
"""


def test_onnxruntime_starts_no_telemetry_session(tmp_path: Path) -> None:
    # Its telemetry keeps the session in a file in the temporary directory.
    environ = {"PATH": "", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
