"""The files of deploy/, docker-compose.yml and the Dockerfile, without Docker."""
