"""What an operator does at the command line: tenants, fleet, keys, and the doctor."""
