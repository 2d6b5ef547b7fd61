"""A wish to end, at a moment when no process can hear it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests import conductor as conductor_module
from tritonpress_loadtests.conductor import Conductor
from tritonpress_loadtests.errors import LoadGeneratorError
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.stages import Stage


@pytest.mark.parametrize("moment", ["before the process is started", "before it has its order"])
def test_a_wish_to_end_that_comes_before_the_order_is_kept(
    moment: str, folder: Path, unused_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = conductor_module._Generator.say

    def interrupted_say(generator: conductor_module._Generator, order: dict[str, Any]) -> None:
        if "stage" in order:
            conductor.interrupt()
        say(generator, order)

    with Conductor(load_scenario(write_scenario(folder)), unused_url) as conductor:
        if moment == "before the process is started":
            conductor.interrupt()
        else:
            monkeypatch.setattr(conductor_module._Generator, "say", interrupted_say)
        with pytest.raises(LoadGeneratorError, match="interrupted"):
            conductor.run(Stage(users=1, duration_s=0.2), 0, progress=lambda event: None, before=lambda: None)
