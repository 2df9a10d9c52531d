"""The log line about what was written to S3. Made by worker/bootstrap.py for each target on S3, and told of its calls."""

import structlog

from backends.measured import Observation


class UploadLog:
    """Logs `S3 upload completed`, a line an object, once the object is durable."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._log = structlog.get_logger("uploads")

    def __call__(self, seen: Observation) -> None:
        """`size` is bytes, `duration` seconds. A copy within the store counts; nothing else than a success is told."""
        if seen.op in {"write", "copy_from"} and seen.outcome == "ok":
            self._log.info(
                "S3 upload completed",
                bucket=self._bucket,
                key=seen.key,
                size=seen.size,
                duration=round(seen.seconds, 6),
            )
