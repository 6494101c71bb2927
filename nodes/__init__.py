"""Processes: settings, life cycles, sockets, signals, and the doors."""

import os

# Both before gRPC is loaded.
os.putenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # its fork handlers stall threads, and no node forks
os.putenv("GRPC_VERBOSITY", "ERROR")  # else it tells of each peer that stops, beside the log's own lines
