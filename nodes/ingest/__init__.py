"""The ingest node: owns shards, serves appends and tails, and, where it leads, the Catalog and the Placement."""
