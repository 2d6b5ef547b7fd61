"""The scenario's users for plain Locust, with its web page: `locust -f loadtests/locustfile.py --host HOST:PORT`.

`TRITONPRESS_SCENARIO` names another scenario's file. `tritonpress-load run` measures the same users more finely.
"""

import os
from pathlib import Path

from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.users import user_class

_DEFAULT = Path(__file__).parent / "scenarios" / "recommendation.yaml"

LoadedUser = user_class(load_scenario(Path(os.environ.get("TRITONPRESS_SCENARIO", _DEFAULT))))
