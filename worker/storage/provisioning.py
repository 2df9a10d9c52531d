"""Makes the bucket of a `PipelineStorage` as its arguments say. Called by worker/storage/parts.py, before the bucket is opened."""

from worker.provision.plan import Verdict
from worker.provision.run import planned
from worker.publishers.embedded import EmbeddedPublisherOptions
from worker.settings_places import PublisherSettings
from worker.settings_schema import Settings


async def provision(settings: Settings) -> None:
    """What was asked for, and for a bucket that is made everything. Raises `ProvisionError` or `ProvisionRefused`."""
    (described,) = settings.provision.buckets.values()
    asked = described.model_fields_set
    if "bucket_policy" in asked:
        asked = asked | {"public_access_block"}
    # The queue is not looked at: that would need permissions that nothing else here needs.
    silent = PublisherSettings(options=EmbeddedPublisherOptions(path=settings.home / "completions.db"))
    async with planned(settings.model_copy(update={"publisher": silent})) as steps:
        new = any(step.aspect == "create_bucket" and step.verdict is Verdict.CREATE for step in steps)
        for step in steps:
            if new or step.aspect in asked:
                await step.apply()
