"""The gateway: HTTP in front, a `Backend` behind; the doors between them."""
