"""Runnel's own gRPC contracts (package runnel.v1) with generated code beside them; `make protos` makes it again."""
