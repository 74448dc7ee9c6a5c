"""What people and programs see: the REST API and the web pages, one Flask application under gunicorn."""
