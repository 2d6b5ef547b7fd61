"""What every part of a scenario's file shares: unknown keys are refused, values do not change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A mapping of a scenario's file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
