"""How mail comes in by SMTP."""
