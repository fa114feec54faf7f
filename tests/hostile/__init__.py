"""The hostile corpus: broken and malicious checkpoint folders as data, made from a good tiny model.

A module per kind of file; `base` says what a case is, `__main__` is the process in which all are read at once.
"""
