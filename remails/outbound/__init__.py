"""How mail goes out."""
