"""Writes the names that TensorRT's own bindings have.

    python tests/tensorrt_names.py VERSION:FOLDER:PYTHON ... > tests/generator/tensorrt_names.json

Each FOLDER has the `tensorrt.so` of one release's bindings (of the wheels `tensorrt_cu13_bindings`, or `tensorrt` 8.5),
which the interpreter PYTHON reads in a process of its own. Where the libraries that it links to are not at hand, empty
ones with their symbols do (`nm -D --undefined-only tensorrt.so` names them), since nothing is called.
"""

from __future__ import annotations

import json
import subprocess
import sys

CLASSES = [
    *("Builder", "BuilderFlag", "DataType", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig"),
    *("ICudaEngine", "IExecutionContext", "ILogger", "INetworkDefinition", "IOptimizationProfile", "ITensor"),
    *("ITimingCache", "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser"),
    *("ParserError", "ProfilingVerbosity", "Runtime", "TacticSource", "TensorIOMode"),
]
READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorrt
public = lambda thing: sorted(name for name in dir(thing) if not name.startswith("_"))
names = {name: public(getattr(tensorrt, name)) for name in sys.argv[2].split() if hasattr(tensorrt, name)}
print(json.dumps({"": public(tensorrt), **names}))
"""


def main() -> None:
    """Prints the names of every class, by version."""
    found: dict[str, dict[str, list[str]]] = {}
    for argument in sys.argv[1:]:
        version, folder, python = argument.split(":")
        command = [python, "-c", READ, folder, " ".join(CLASSES)]
        found[version] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lines = (f'"{version}":{json.dumps(names, separators=(",", ":"))}' for version, names in found.items())
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main()
