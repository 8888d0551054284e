"""The HTTP API and its landing page; see README.md."""
