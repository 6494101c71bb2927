"""Runnel's own API over gRPC: protos/runnel.proto, explained in docs/grpc.md."""
