"""The doors: one package for each foreign protocol, each over `nodes.backend.Backend` alone."""
