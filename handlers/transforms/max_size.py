"""The size policy of a route, as the settings have it. size_policy.py beside it carries it out."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME: Final = "max_size"


class MaxSize(BaseModel):
    """How large an object may be that is stored, after all transforms; each entry of an archive is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=1, description="Bytes of the largest object.")
    over: Literal["reject", "compress", "split"] = Field(
        default="reject",
        description="What becomes of a larger one: `reject` (a dead letter), `compress` (by zstd, and rejected where that is not "
        "enough), or `split` into parts of so many bytes, with a list that `transload get` puts them together by.",
    )
