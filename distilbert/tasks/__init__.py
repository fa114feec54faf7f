"""Text in, answers out, on any backend."""
