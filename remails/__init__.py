"""Remails: a transactional mail relay for a company's own hosts and addresses."""

__version__ = "0.1.0"
