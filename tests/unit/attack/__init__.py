"""Pure parts under attack; each test is named after what was lost."""
