"""The tables of the PostgreSQL backend and every statement on them. Used by backends/postgres*.py, nobody else.

`{schema}` is replaced by the quoted name of the configured schema. Each statement is a transaction of its own.

A row of `objects` is an object once `stored_at` is set; before that it is a write under way, and its chunks belong to nobody
else. `doomed` is the fence between a writer and whoever removes its chunks: a doomed row can never become an object.
"""

from typing import Final

SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {schema};"

TABLES: Final = """\
CREATE TABLE {schema}.objects (
    uuid uuid PRIMARY KEY,
    key text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    stored_at timestamptz,
    doomed boolean NOT NULL DEFAULT false,
    size bigint,
    sha256 bytea,
    content_type text,
    metadata jsonb NOT NULL DEFAULT '{}',
    storage_version smallint NOT NULL DEFAULT 1,
    CHECK (stored_at IS NULL OR (size IS NOT NULL AND sha256 IS NOT NULL AND NOT doomed))
);
CREATE UNIQUE INDEX objects_key ON {schema}.objects (key) WHERE stored_at IS NOT NULL;
CREATE INDEX objects_unfinished ON {schema}.objects (key) WHERE stored_at IS NULL;
CREATE TABLE {schema}.chunks (
    object uuid NOT NULL REFERENCES {schema}.objects ON DELETE CASCADE,
    number integer NOT NULL,
    data bytea NOT NULL,
    sha256 bytea NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (object, number),
    CONSTRAINT chunks_whole CHECK (sha256 = sha256(data))
);
ALTER TABLE {schema}.chunks ALTER COLUMN data SET STORAGE EXTERNAL;
"""
"""Keys compare by their bytes. Payloads are mostly compressed already, so the server does not try to."""

STATE: Final = """\
SELECT current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS commit,
    pg_is_in_recovery() AS standby, to_regnamespace('{schema}') IS NOT NULL AS schema_present,
    to_regclass('{schema}.objects') IS NOT NULL AND to_regclass('{schema}.chunks') IS NOT NULL AS present,
    (SELECT bool_and(has_table_privilege(tables.name, privilege)) FROM
        (VALUES (to_regclass('{schema}.objects')), (to_regclass('{schema}.chunks'))) AS tables (name),
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE tables.name IS NOT NULL) AS permitted
"""

PUT: Final = """\
WITH made AS (
    INSERT INTO {schema}.objects (uuid, key, stored_at, size, sha256, content_type, metadata)
    VALUES ($1, $2, now(), $3::bigint, $4::bytea, $5, $6)
    ON CONFLICT (key) WHERE stored_at IS NOT NULL DO NOTHING
    RETURNING uuid
), added AS (
    INSERT INTO {schema}.chunks (object, number, data, sha256)
    SELECT uuid, 0, $7::bytea, $4::bytea FROM made WHERE $3::bigint > 0
)
SELECT uuid FROM made
"""
"""An object of at most one chunk, whole. No row: the key is taken."""

BEGIN: Final = """\
INSERT INTO {schema}.objects (uuid, key, content_type, metadata)
SELECT $1::uuid, $2::text, $3::text, $4::jsonb
WHERE NOT EXISTS (SELECT FROM {schema}.objects WHERE key = $2::text AND stored_at IS NOT NULL)
RETURNING uuid
"""
"""No row: the key is taken already, so the chunks need not be stored."""

ADD: Final = "INSERT INTO {schema}.chunks (object, number, data, sha256) VALUES ($1, $2, $3, $4)"

COPY: Final = """\
WITH copied AS (
    INSERT INTO {schema}.chunks (object, number, data, sha256)
    SELECT $1::uuid, number, data, sha256 FROM {source}.chunks WHERE object = $2::uuid AND number >= $3 AND number < $4
    RETURNING octet_length(data) AS size
)
SELECT count(*) AS chunks, coalesce(sum(size), 0)::bigint AS size FROM copied
"""

COMMIT: Final = """\
UPDATE {schema}.objects SET stored_at = now(), size = $2, sha256 = $3 WHERE uuid = $1 AND NOT doomed RETURNING uuid
"""
"""No row: it was swept. A unique violation: the key is taken."""

IS_STORED: Final = "SELECT uuid FROM {schema}.objects WHERE uuid = $1 AND stored_at IS NOT NULL"

DOOM: Final = "UPDATE {schema}.objects SET doomed = true WHERE uuid = $1 AND stored_at IS NULL RETURNING uuid"

DELETE: Final = """\
UPDATE {schema}.objects SET stored_at = NULL, doomed = true WHERE key = $1 AND stored_at IS NOT NULL RETURNING uuid
"""

DOOM_OLD: Final = """\
UPDATE {schema}.objects AS old SET doomed = true
WHERE stored_at IS NULL AND starts_with(key, $2) AND now() - make_interval(secs => $1) >= coalesce(
    (SELECT added_at FROM {schema}.chunks WHERE object = old.uuid ORDER BY number DESC LIMIT 1), created_at)
RETURNING uuid
"""

CLEAR: Final = """\
DELETE FROM {schema}.chunks WHERE object = $1
AND number IN (SELECT number FROM {schema}.chunks WHERE object = $1 LIMIT $2) RETURNING number
"""

REMOVE: Final = "DELETE FROM {schema}.objects WHERE uuid = $1 AND doomed RETURNING uuid"

FIND: Final = """\
SELECT uuid, size, sha256, content_type, metadata FROM {schema}.objects WHERE key = $1 AND stored_at IS NOT NULL
"""

OPEN: Final = """\
SELECT uuid, size, chunks.data, chunks.sha256 FROM {schema}.objects LEFT JOIN {schema}.chunks ON object = uuid AND number = 0
WHERE key = $1 AND stored_at IS NOT NULL
"""

CHUNK: Final = "SELECT data, sha256 FROM {schema}.chunks WHERE object = $1 AND number = $2"

LIST: Final = """\
SELECT key, size, sha256 FROM {schema}.objects WHERE stored_at IS NOT NULL AND key >= $1 ORDER BY key LIMIT $2
"""
