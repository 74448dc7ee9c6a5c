"""A whole installation on a developer's machine, with a small world around it. Nothing here runs in production."""
