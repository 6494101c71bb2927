"""Answers and rows that an attack once lost or bent; each test is named after what it cost."""
