"""What wraps every handler: each module is one concern, put together in `nodes.gateway.assembly`."""
