"""What we remember: PostgreSQL, with the SQL in the function that runs it. The caller opens the transaction."""
