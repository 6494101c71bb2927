"""Runnel's own gRPC contracts (package runnel.v1) with generated code beside them; `make protos` makes it again."""

import os

os.putenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # before gRPC is loaded: its fork handlers stall threads, and no node forks
