"""One machine as a compose file: Triton, a proxy with TLS before it, Prometheus and Grafana."""

from __future__ import annotations

from typing import Any

from tritonpress_generator.deploy import monitoring, proxy
from tritonpress_generator.deploy.command import MODELS
from tritonpress_generator.deploy.image import HEALTHCHECK
from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import (
    CERTIFICATE,
    GRAFANA_IMAGE,
    GRPC,
    KEY,
    PROMETHEUS_IMAGE,
    PROXY_IMAGE,
    STOP_S,
    TLS_FOLDER,
    TOKEN_FILE,
    USER,
    Settings,
)

RULES = "/etc/prometheus/rules.yaml"
_DASHBOARDS = "/etc/grafana/dashboards"
_TOKEN = "admin_token"


def compose(served: Served, settings: Settings, *, image: str, repository: str) -> dict[str, Any]:
    """Returns the compose file.

    Args:
        served: The repository.
        settings: The operator's.
        image: With its tag.
        repository: Its path, as seen from the compose file.
    """
    return {
        "name": settings.name,
        "services": {
            "triton": _triton(served, settings, image, repository),
            "proxy": _proxy(settings),
            "prometheus": _prometheus(settings),
            "grafana": _grafana(settings),
        },
        "volumes": {"prometheus": {}, "grafana": {}},
        "secrets": {_secret(name): {"file": f"./secrets/{name}"} for name in secrets(settings)},
    }


def secrets(settings: Settings) -> list[str]:
    """Returns the names of the files that the operator puts into `secrets/`."""
    # The proxy has a certificate of the machine, which gRPC shows too.
    own = [name for name in settings.tls_files if name not in (CERTIFICATE, KEY)]
    return [CERTIFICATE, KEY, *own, "grafana_admin_password", *([_TOKEN] if settings.guarded else [])]


def proxy_config(served: Served, settings: Settings) -> dict[str, Any]:
    """Returns Caddy's configuration."""
    certificate, key = (f"/run/secrets/{_secret(name)}" for name in (CERTIFICATE, KEY))
    return proxy.config(served, settings, certificate=certificate, key=key)


def provisioning() -> dict[str, dict[str, Any]]:
    """Returns Grafana's provisioning files: where the metrics and the dashboard are."""
    source = {"name": "Prometheus", "type": "prometheus", "url": "http://prometheus:9090", "isDefault": True}
    return {
        "datasources/prometheus.yaml": {"apiVersion": 1, "datasources": [source]},
        "dashboards/tritonpress.yaml": {
            "apiVersion": 1,
            "providers": [{"name": "tritonpress", "type": "file", "options": {"path": _DASHBOARDS}}],
        },
    }


def prometheus_config() -> dict[str, Any]:
    """Returns Prometheus's configuration."""
    return monitoring.scrape_config("triton", RULES)


def _triton(served: Served, settings: Settings, image: str, repository: str) -> dict[str, Any]:
    resources: dict[str, Any] = {"limits": {"memory": f"{served.memory_mib + served.shared_memory_mib}M"}}
    if served.needs_gpu:
        resources["reservations"] = {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    given = {name: f"{TLS_FOLDER}/{name}" for name in settings.tls_files}
    given |= {_TOKEN: TOKEN_FILE} if settings.guarded else {}
    return {
        **_hardened(image),
        "build": {"context": "../image"},
        # Triton unpacks an environment there, and maps its libraries.
        **({"tmpfs": ["/tmp:exec"]} if settings.execution_env else {}),
        **(
            {"secrets": [{"source": _secret(name), "target": target} for name, target in given.items()]}
            if given
            else {}
        ),
        # Through an init process, since Triton's Python stubs are its children.
        "init": True,
        "shm_size": f"{served.shared_memory_mib}mb",
        "stop_grace_period": f"{STOP_S}s",
        "ports": [_published(settings.ports.grpc, GRPC)],
        "volumes": [
            {
                "type": "bind",
                # A dollar would be taken for a variable.
                "source": repository.replace("$", "$$"),
                "target": str(MODELS),
                "read_only": True,
                "bind": {"create_host_path": False},
            }
        ],
        "healthcheck": {
            "test": ["CMD", *HEALTHCHECK],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": f"{served.startup_s}s",
        },
        "deploy": {"resources": resources},
    }


def _proxy(settings: Settings) -> dict[str, Any]:
    return {
        **_hardened(PROXY_IMAGE),
        "user": f"{USER}:{USER}",
        # The image's binary claims this capability, and is not started where nobody could have it.
        "cap_add": ["NET_BIND_SERVICE"],
        "command": ["caddy", "run", "--config", "/etc/caddy/config.json"],
        "environment": {"XDG_DATA_HOME": "/tmp", "XDG_CONFIG_HOME": "/tmp"},
        "depends_on": {"triton": {"condition": "service_healthy"}},
        "ports": [_published(settings.ports.https, proxy.PORT)],
        "volumes": [_file("proxy.json", "/etc/caddy/config.json")],
        "secrets": [_secret(CERTIFICATE), _secret(KEY)],
    }


def _prometheus(settings: Settings) -> dict[str, Any]:
    return {
        **_hardened(PROMETHEUS_IMAGE),
        "ports": [_published(settings.ports.prometheus, 9090)],
        "volumes": [
            _file("prometheus.yaml", "/etc/prometheus/prometheus.yml"),
            _file("rules.yaml", RULES),
            {"type": "volume", "source": "prometheus", "target": "/prometheus"},
        ],
    }


def _grafana(settings: Settings) -> dict[str, Any]:
    return {
        **_hardened(GRAFANA_IMAGE),
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana_admin_password",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{_DASHBOARDS}/tritonpress.json",
        },
        "depends_on": ["prometheus"],
        "ports": [_published(settings.ports.grafana, 3000)],
        "volumes": [
            _file("grafana/provisioning", "/etc/grafana/provisioning"),
            _file("grafana/dashboards", _DASHBOARDS),
            {"type": "volume", "source": "grafana", "target": "/var/lib/grafana"},
        ],
        "secrets": ["grafana_admin_password"],
    }


def _hardened(image: str) -> dict[str, Any]:
    """Returns what all services have: no right that they do not need, and no file that they may change."""
    return {
        "image": image,
        "restart": "unless-stopped",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _secret(file: str) -> str:
    """Returns the name of the secret that is a file in `secrets/`."""
    return file.replace(".", "_")


def _published(port: int, target: int) -> dict[str, Any]:
    """Returns a port of the host's loopback: who opens it to others changes `host_ip`."""
    return {"target": target, "published": str(port), "host_ip": "127.0.0.1", "protocol": "tcp"}


def _file(source: str, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": f"./{source}", "target": target, "read_only": True}
