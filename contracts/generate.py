"""Generate ``tolaria_bus/leyline/v1`` (messages and type stubs) from the contracts here.

``python contracts/generate.py [DESTINATION]``; the default destination is ``tolaria_bus/leyline``.

protoc writes imports relative to the proto root (``from leyline.v1 import ...``), which would
claim a top-level package called ``leyline`` for everybody who installs tolaria-bus. They are
rewritten to live under ``tolaria_bus``; the protobuf package stays ``leyline.v1``.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONTRACTS = Path(__file__).resolve().parent
DESTINATION = CONTRACTS.parent / "tolaria_bus" / "leyline"


def generate(destination: Path = DESTINATION) -> list[Path]:
    """Write the generated files to ``destination/v1`` and return their paths.

    Raises:
        subprocess.CalledProcessError: protoc refused a contract; it has printed why.
    """
    protos = sorted((CONTRACTS / "leyline" / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{CONTRACTS}"]
        command += [f"--python_out={scratch}", f"--mypy_out=quiet:{scratch}"]
        # protoc looks for the stub generator on PATH; it is beside this interpreter.
        plugin = Path(sys.executable).with_name("protoc-gen-mypy")
        command += [f"--plugin=protoc-gen-mypy={plugin}", *map(str, protos)]
        subprocess.run(command, check=True)
        target = destination / "v1"
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for source in sorted((Path(scratch) / "leyline" / "v1").iterdir()):
            text = re.sub(
                r"\b(from|import) leyline\b", r"\1 tolaria_bus.leyline", source.read_text()
            )
            text = re.sub(
                r"(?<![\w.\"'/])leyline\.v1\.(\w+_pb2)", r"tolaria_bus.leyline.v1.\1", text
            )
            path = target / source.name
            path.write_text(text)
            written.append(path)
    return written


if __name__ == "__main__":
    for path in generate(*map(Path, sys.argv[1:])):
        print(path)
