"""Who is here and who owns what: gossip, Raft, Placement, and the channels between nodes. Knows no storage."""
