"""Processes: settings, life cycles, sockets, signals, and the doors."""
