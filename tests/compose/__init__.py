"""The image and docker-compose.yml, for real. Only `make compose-test` runs these tests."""
