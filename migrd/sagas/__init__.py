"""The sagas: pure tables, one file per kind. See `migrd.saga`."""
