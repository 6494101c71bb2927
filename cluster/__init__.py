"""Who is here and who owns what: gossip, Raft, Placement, and the channels between nodes. Knows no storage."""

import os

os.putenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # before gRPC is loaded: its fork handlers stall threads, and no node forks
