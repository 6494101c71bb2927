"""Processes: settings, life cycles, sockets, signals, and the doors."""

import os

os.putenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # before gRPC is loaded: its fork handlers stall threads, and no node forks
