"""What stands before Triton on one machine: TLS, and limits that Triton has no option for."""

from __future__ import annotations

from typing import Any

from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import GRPC, HTTP, Settings

PORT = 8443
"""Of both HTTP and gRPC."""

# Whoever can ask the proxy can neither load models, nor map shared memory, nor change what is logged and traced.
_MODEL = r"models/[A-Za-z0-9_][A-Za-z0-9._-]*(/versions/[0-9]+)?"
_HTTP_OPEN = rf"^/v2(/health/(live|ready)|/{_MODEL}(/(infer|ready|config))?)?$"
# The statistics of all models, which Triton gives at the place of a model of that name.
_ALL_STATISTICS = "^/v2/models/stats$"
# Without ModelStreamInfer: a stream has any number of messages, and no limit on a request would hold it.
_GRPC_OPEN = (
    r"^/(inference\.GRPCInferenceService/(Server(Live|Ready|Metadata)|Model(Ready|Metadata|Config|Infer))"
    r"|grpc\.health\.v1\.Health/Check)$"
)
_REFUSAL = "not open through this proxy"
_PERMISSION_DENIED, _RESOURCE_EXHAUSTED = 7, 8
"""https://grpc.io/docs/guides/status-codes/"""


def config(served: Served, settings: Settings, *, certificate: str, key: str) -> dict[str, Any]:
    """Returns Caddy's configuration: inference, health and metadata with TLS, nothing that changes the server.

    A request that is longer than any to the repository is refused (413, RESOURCE_EXHAUSTED), and so is one that is
    compressed (403, PERMISSION_DENIED): its length says nothing of what it becomes. A connection has as many requests
    at a time as Caddy allows by itself, 250.

    Args:
        served: The repository.
        settings: The operator's; where Triton's gRPC has TLS of its own, clients go there, and gRPC is refused here.
        certificate: The file, where Caddy has it.
        key: Its key.
    """
    limit = {"handler": "request_body", "max_size": served.request_bytes}
    is_grpc: dict[str, Any] = {"protocol": "grpc"}
    routes = [
        _route(is_grpc, _grpc_refusal(_PERMISSION_DENIED, _REFUSAL)),
        # Of a compressed body that Triton refuses it keeps what it has unpacked: a thousand times what was sent.
        _route(_open(_HTTP_OPEN, ["GET", "POST"], "Content-Encoding"), limit, _forward(HTTP)),
        _route({}, {"handler": "static_response", "status_code": 403, "body": f"{_REFUSAL}\n"}),
    ]
    if settings.grpc_tls is None:
        of_service = is_grpc | _open(_GRPC_OPEN, ["POST"], "Grpc-Encoding")
        routes.insert(0, _route(of_service, limit, _forward(GRPC, versions=["h2c", "2"])))
    too_long = f"a request of more than {served.request_bytes} bytes is longer than any to these models"
    return {
        "admin": {"disabled": True},
        "apps": {
            "http": {
                "servers": {
                    "triton": {
                        "listen": [f":{PORT}"],
                        "automatic_https": {"disable": True},
                        "tls_connection_policies": [{}],
                        "routes": routes,
                        "errors": {
                            "routes": [
                                _route(
                                    is_grpc | {"expression": "{http.error.status_code} == 413"},
                                    _grpc_refusal(_RESOURCE_EXHAUSTED, too_long),
                                )
                            ]
                        },
                    }
                }
            },
            "tls": {"certificates": {"load_files": [{"certificate": certificate, "key": key}]}},
        },
    }


def _open(paths: str, methods: list[str], encoding: str) -> dict[str, Any]:
    """Returns what a request must be to be let through; `encoding` is the header of one that is compressed."""
    return {
        "method": methods,
        # The second is of the path that Triton gets; the first of what it comes to.
        "path_regexp": {"pattern": paths},
        "vars_regexp": {"{http.request.orig_uri.path}": {"pattern": paths}},
        "not": [{"path_regexp": {"pattern": _ALL_STATISTICS}}, {"header": {encoding: []}}],
    }


def _route(match: dict[str, Any], *handlers: dict[str, Any]) -> dict[str, Any]:
    return {**({"match": [match]} if match else {}), "handle": [*handlers], "terminal": True}


def _forward(port: int, *, versions: list[str] | None = None) -> dict[str, Any]:
    transport = {"transport": {"protocol": "http", "versions": versions}} if versions else {}
    return {"handler": "reverse_proxy", **transport, "upstreams": [{"dial": f"triton:{port}"}]}


def _grpc_refusal(status: int, message: str) -> dict[str, Any]:
    """Returns an answer of trailers alone, with which gRPC refuses a call."""
    headers = {"Content-Type": ["application/grpc"], "Grpc-Status": [str(status)], "Grpc-Message": [message]}
    return {"handler": "static_response", "status_code": 200, "headers": headers}
