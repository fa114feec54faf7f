"""Checkpoint files: bytes to named arrays and back, safely, with no framework."""
