"""What all sections of the settings share. worker/settings_schema.py says what there is of them."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """What all sections share: frozen, and a key nobody knows is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
