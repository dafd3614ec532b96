"""Connection, credentials and retries, and what the server's words mean."""
