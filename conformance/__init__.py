"""The proof that the backends compute what the reference computes. Not installed; run from the repository's root."""
