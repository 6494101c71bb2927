"""The InfluxDB door, first half: writes of v1, v2 and v3, SQL, configuration, and what clients ask at start.

Statuses, headers and bodies follow InfluxDB 3 (`influxdb3_server/src/http.rs`), and 1.x on ``/query``.
"""
