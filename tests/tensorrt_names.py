"""Writes the names that the bindings of TensorRT and CUDA have.

    python tests/tensorrt_names.py tensorrt VERSION:FOLDER:PYTHON ... > tests/tensorrt_names.json
    python tests/tensorrt_names.py cuda.bindings.runtime VERSION:FOLDER:PYTHON ... > tests/cuda_names.json

Each FOLDER is what one release's wheel holds: `tensorrt.so` (of the wheels `tensorrt_cu13_bindings`, or `tensorrt`
8.5), or `cuda/bindings` (of `cuda-python` 12 or `cuda-bindings` 13, which needs `cuda-pathfinder` beside it). The
interpreter PYTHON reads it in a process of its own. Where the libraries that TensorRT links to are not at hand, empty
ones with their symbols do (`nm -D --undefined-only tensorrt.so` names them), since nothing is called.
"""

from __future__ import annotations

import json
import subprocess
import sys

CLASSES = {
    "tensorrt": [
        *("Builder", "BuilderFlag", "DataType", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig"),
        *("ICudaEngine", "IExecutionContext", "ILogger", "INetworkDefinition", "IOptimizationProfile", "ITensor"),
        *("ITimingCache", "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser"),
        *("ParserError", "PreviewFeature", "ProfilingVerbosity", "Runtime", "TacticSource", "TensorIOMode"),
    ],
    "cuda.bindings.runtime": ["cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr", "cudaDeviceProp"],
}
READ = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
module = importlib.import_module(sys.argv[2])
public = lambda thing: sorted(name for name in dir(thing) if not name.startswith("_"))
names = {name: public(getattr(module, name)) for name in sys.argv[3].split() if hasattr(module, name)}
print(json.dumps({"": public(module), **names}))
"""


def main() -> None:
    """Prints the names of every class of the module, by version."""
    module, *releases = sys.argv[1:]
    found: dict[str, dict[str, list[str]]] = {}
    for argument in releases:
        version, folder, python = argument.split(":")
        command = [python, "-c", READ, folder, module, " ".join(CLASSES[module])]
        found[version] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lines = (f'"{version}":{json.dumps(names, separators=(",", ":"))}' for version, names in found.items())
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main()
