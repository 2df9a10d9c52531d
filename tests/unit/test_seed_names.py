"""docs/coming-from.md: every name of the tools that people come from has a row, and every row is proven or says why not."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/coming-from.md"

NAMES = {
    "OC Fetcher: storage": """
        start_bundle BundleStorageContext add_resource complete BundleRef from_dict to_dict
        FileStorage output_dir create_dirs bundle_{bid} bundle.meta .meta
        PipelineStorage bucket_name bucket sqs_publisher prefix region endpoint_url SqsPublisher queue_url
        bundles/{bid}/resources metadata.json url content_type status_code
        UnzipResourceDecorator BundleResourcesDecorator create_storage_stack unzip_resources bundle_resources
        StorageBuilder file_storage pipeline_storage build
        bid:v1:{registry}:{YYYYMMDDHHMMSS}:{hex8} test- custom-
        bundle_id recipe_id primary_url resources_count storage_key completion_timestamp metadata source run_id
        on_bundle_complete_hook on_run_start configure_application_storage create_app_config
        OC_STORAGE_TYPE OC_S3_BUCKET OC_S3_PREFIX OC_S3_ENDPOINT_URL AWS_REGION OC_SQS_QUEUE_URL OC_STORAGE_FILE_PATH
        OC_STORAGE_USE_UNZIP OC_STORAGE_USE_BUNDLER OC_STORAGE_PIPELINE_AWS_PROFILE
    """,
    "OC Fetcher: pipeline storage": """
        create_bucket oc-fetcher-{environment} bucket_policy versioning lifecycle_policy archive-after-30-days
        transitions expiration days storage_class
        encryption AES256 aws:kms kms_key_id
        multipart_threshold multipart_chunksize max_concurrent_uploads upload_timeout max_retries retry_delay exponential_backoff
        AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION config.aws.region config.aws.profile config.aws.role_arn
        cloudwatch_metrics metrics_namespace OCFetcher
    """,
    "Medallion platform": """
        upload_file download_file list_files delete_file get_backend_type health_check
        get_storage_backend register_backend list_backends
        platform.bronze storage_backend s3_bucket s3_prefix s3_enabled storage_enabled
        s3_connection endpoint_url_env access_key_env secret_key_env
        azure_storage_account azure_container azure_prefix azure_connection connection_string_env local_path custom
        system=X/table=Y/dt=YYYY-MM-DD
    """,
    "vCon server": """
        save get delete default_options storages.<name> module options
        chains.<name> links storages ingress_lists enabled
        path file_extension host port database user password base_url api_key timeout
        bucket prefix region access_key secret_key endpoint_url
        max_size uuid created_at stored_at storage_version
    """,
    "FluxForge": """
        storage.backend base_dir paths raw_dir active_subdir ready_subdir processing_subdir processed_dir
        s3 bucket region aws_access_key_id aws_secret_access_key
        ingestion.storage storage_input storage_output delete_after_processing
        LogWriter active_path ready_path source_name segment_{YYYYMMDDTHH}_{NNNNN}.ndjson
        IngestionPipeline start wait_for_shutdown stop
        get_ingestion_path get_etl_input_path get_etl_output_path get_full_path
    """,
}
"""What each document names; a name's row stands under the document's heading."""


@dataclass(frozen=True)
class Row:
    heading: str
    names: tuple[str, ...]
    here: str
    proof: str

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`(test_\w+)`", self.proof)


def read_rows() -> list[Row]:
    heading, rows = "", []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| there |"):
            there, here, proof = (cell.strip() for cell in line.strip("| ").split(" | "))
            rows.append(Row(heading, tuple(re.findall(r"`([^`]+)`", there)), here, proof))
    return rows


ROWS = read_rows()
WITHOUT_TEST = ("not yet", "no")


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The text of the file that each test stands in."""
    found: dict[str, str] = {}
    for path in sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "backends/testing").rglob("*.py")]):
        text = path.read_text(encoding="utf-8")
        found |= {name: found.get(name, "") + text for name in re.findall(r"def (test_\w+)\(", text)}
    return found


@pytest.mark.parametrize("heading", NAMES)
def test_every_name_has_a_row(heading: str) -> None:
    there = {name for row in ROWS if row.heading == heading for name in row.names}
    assert set(NAMES[heading].split()) - there == set()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.names)[:60])
def test_every_row_names_tests_that_exist_and_use_the_name(row: Row, sources: dict[str, str]) -> None:
    assert row.here
    if row.proof in WITHOUT_TEST:
        return
    assert row.tests, "a row names a test, or says `not yet` or `no`"
    assert [test for test in row.tests if test not in sources] == []
    if row.proof.startswith("ours: "):
        return
    text = "".join(sources[test] for test in row.tests)
    assert [name for name in row.names if not _is_used(name, text)] == []


def _is_used(name: str, text: str) -> bool:
    """A dotted key is used as the last of its parts; what is in braces or angles stands for a value."""
    if re.fullmatch(r"[a-z_]+(\.[a-z_<>]+)+", name):
        name = re.sub(r"\.<\w+>", "", name).rpartition(".")[2]
    pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(name))
    before, behind = (r"\b" if character.isalnum() else "" for character in (name[0], name[-1]))
    return re.search(f"{before}{pattern}{behind}", text) is not None


def test_the_page_is_read_whole() -> None:
    assert {row.heading for row in ROWS} == set(NAMES)
    assert len(ROWS) > 90


def test_what_is_not_yet_here_says_so() -> None:
    for row in ROWS:
        assert ("not yet" in row.here) >= (row.proof == "not yet"), row
