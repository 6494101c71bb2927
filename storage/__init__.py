"""What is kept: the object store, the Log, memtables, DataFiles, the Catalog. Knows no node and no door."""
