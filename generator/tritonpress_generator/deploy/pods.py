"""The pod of a server: where its repository comes from, what it may do, and how Kubernetes knows its state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from tritonpress_generator.deploy.command import MODELS
from tritonpress_generator.deploy.image import PYTHON, UNPACK
from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import (
    DRAIN_S,
    GCS_IMAGE,
    GRPC,
    HTTP,
    METRICS,
    S3_IMAGE,
    STOP_S,
    TLS_FOLDER,
    TOKEN_FILE,
    USER,
    Settings,
)

CONTAINER = "triton"
_PROBE_S = 5
_BUNDLE = PurePosixPath("/bundle/model_repository.bundle")
_FETCH_MIB = 512
_TOKEN = "admin-token"
_TLS = "grpc-tls"
# Of the gateway images: the command line of each cloud that copies one object into a file.
_FETCH = {"s3": (S3_IMAGE, ["aws", "s3", "cp", "--only-show-errors"]), "gs": (GCS_IMAGE, ["gcloud", "storage", "cp"])}


def claim(settings: Settings) -> str:
    """Returns the name of the volume claim with the repository in it, where there is no bundle."""
    return f"{settings.name}-repository"


def secret(settings: Settings) -> str:
    """Returns the name of the secret that has the admin token as its key `token`."""
    return f"{settings.name}-admin"


def tls_secret(settings: Settings) -> str:
    """Returns the name of the secret that has the certificates of gRPC, in the form of cert-manager's."""
    return f"{settings.name}-grpc-tls"


def spec(served: Served, settings: Settings, *, image: str, command: Sequence[str]) -> dict[str, Any]:
    """Returns the pod's specification, without what depends on the kind of machine."""
    repository: dict[str, Any] = {"persistentVolumeClaim": {"claimName": claim(settings), "readOnly": True}}
    init: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    if settings.bundle:
        repository = {"emptyDir": {}}
        init = [_fetch(settings.bundle), _unpack(image, settings.bundle_sha256)]
        volumes = [{"name": "bundle", "emptyDir": {}}]
    volumes += [{"name": name, "secret": source} for name, _, source in _secrets(settings)]
    return {
        "serviceAccountName": settings.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "terminationGracePeriodSeconds": STOP_S,
        **({"initContainers": init} if init else {}),
        "containers": [_triton(served, settings, image, command)],
        "volumes": [
            {"name": "repository", **repository},
            *volumes,
            {"name": "tmp", "emptyDir": {}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{served.shared_memory_mib}Mi"},
            },
        ],
    }


def _triton(served: Served, settings: Settings, image: str, command: Sequence[str]) -> dict[str, Any]:
    # What lies in shared memory counts as the container's.
    memory = f"{served.memory_mib + served.shared_memory_mib}Mi"
    where = MODELS.parent if settings.bundle else MODELS
    return {
        "name": CONTAINER,
        "image": image,
        # The image's entry point stays, as in the Dockerfile.
        "args": list(command),
        "ports": [
            {"name": "grpc", "containerPort": GRPC},
            {"name": "http", "containerPort": HTTP},
            {"name": "metrics", "containerPort": METRICS},
        ],
        "resources": {"requests": {"memory": memory}, "limits": {"memory": memory}},
        "securityContext": _locked(),
        "volumeMounts": [
            {"name": "repository", "mountPath": str(where), "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *({"name": name, "mountPath": folder, "readOnly": True} for name, folder, _ in _secrets(settings)),
        ],
        "startupProbe": {**_probe("ready"), "failureThreshold": served.startup_s // _PROBE_S},
        "readinessProbe": {**_probe("ready"), "failureThreshold": 2},
        "livenessProbe": {**_probe("live"), "failureThreshold": 6},
        # Endpoints are taken back while the server still answers; then SIGTERM drains it.
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_S}}},
    }


def _secrets(settings: Settings) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns name, folder and source of the volumes with secrets, whose files the pod's group can read."""
    token = PurePosixPath(TOKEN_FILE)
    wanted = []
    if settings.guarded:
        wanted.append((_TOKEN, str(token.parent), secret(settings), {"token": token.name}))
    if settings.tls_files:
        wanted.append((_TLS, TLS_FOLDER, tls_secret(settings), {name: name for name in settings.tls_files}))
    return [
        (
            name,
            folder,
            {
                "secretName": of,
                "items": [{"key": key, "path": path} for key, path in files.items()],
                "defaultMode": 0o440,
            },
        )
        for name, folder, of, files in wanted
    ]


def _probe(state: str) -> dict[str, Any]:
    return {
        "httpGet": {"path": f"/v2/health/{state}", "port": "http"},
        "periodSeconds": _PROBE_S,
        "timeoutSeconds": 3,
    }


def _fetch(bundle: str) -> dict[str, Any]:
    """Returns the container that copies the bundle out of its bucket."""
    image, command = _FETCH[bundle.partition("://")[0]]
    return {
        "name": "fetch",
        "image": image,
        "command": [*command, bundle, str(_BUNDLE)],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": _modest(),
        "securityContext": _locked(),
        "volumeMounts": [
            {"name": "bundle", "mountPath": str(_BUNDLE.parent)},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _unpack(image: str, sha256: str | None) -> dict[str, Any]:
    """Returns the container that unpacks the bundle, of this hash if one is given, and checks every block and file."""
    return {
        "name": "unpack",
        "image": image,
        "command": [*UNPACK, str(_BUNDLE), str(MODELS), *([sha256] if sha256 else [])],
        "env": [{"name": "PYTHONPATH", "value": PYTHON}],
        "resources": _modest(),
        "securityContext": _locked(),
        "volumeMounts": [
            {"name": "bundle", "mountPath": str(_BUNDLE.parent), "readOnly": True},
            {"name": "repository", "mountPath": str(MODELS.parent)},
        ],
    }


def _modest() -> dict[str, Any]:
    # Requests that equal limits, as in overlay `cpu`: else no container of the pod gets cores of its own.
    return {kind: {"cpu": "1", "memory": f"{_FETCH_MIB}Mi"} for kind in ("requests", "limits")}


def _locked() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
