"""The REST API: one module for each noun, in the order of the document."""

from remails.api.rest import (
    api_keys,
    domains,
    emails,
    login,
    organizations,
    projects,
    smtp_credentials,
    suppressions,
    system,
)

NOUNS = (
    organizations.noun,
    projects.noun,
    domains.noun,
    emails.noun,
    smtp_credentials.noun,
    suppressions.noun,
    api_keys.noun,
    login.noun,
    system.noun,
)
