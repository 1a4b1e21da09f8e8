"""The HTTP surface: /v1 JSON, server-sent events, problem documents, metrics. Knows only migrd.control."""
