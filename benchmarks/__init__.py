"""Speed, measured against others. By hand: not part of the package and not run by the tests."""
