"""Foreign protocols as pure codecs: bytes to messages and back, no I/O, no clock."""
