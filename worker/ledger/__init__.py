"""The database: resources, bundles, per-target state, outbox. The port in `base`, SQLAlchemy Core in `sql`."""
