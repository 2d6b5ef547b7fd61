"""The scenario's users for plain Locust, with its web page: `locust -f loadtests/locustfile.py --host HOST:PORT`.

`TRITONPRESS_SCENARIO` names another scenario's file; TLS and tokens are asked for as of `tritonpress-query`.
`tritonpress-load run` measures the same users more finely.
"""

import os
from pathlib import Path
from typing import Any

from locust import events
from tritonpress_client import connecting
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.users import user_class

_DEFAULT = Path(__file__).parent / "scenarios" / "recommendation.yaml"

events.init_command_line_parser.add_listener(connecting.add_security_arguments)
LoadedUser = user_class(load_scenario(Path(os.environ.get("TRITONPRESS_SCENARIO", _DEFAULT))))


@events.init.add_listener
def _secured(environment: Any, **_: Any) -> None:
    """Lets the users reach the server as the command line says."""
    LoadedUser.options = connecting.options(environment.parsed_options)
