"""PostgreSQL: the writer that the pipeline commits to, migrations, named queries, the embedded server."""
