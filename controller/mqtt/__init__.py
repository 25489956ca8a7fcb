"""The supervised broker, ingest and doorbells. Trusts no message for content."""
