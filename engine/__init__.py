"""From a statement to a Result: plan, scan, stages, formats. No sockets; imported by query nodes and workers."""
