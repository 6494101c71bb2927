"""The query node: runs statements over one snapshot of each shard, from its owner or from the store."""
