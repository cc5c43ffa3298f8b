"""The host side with the host's own packages: run by .ci/host_environments.py, and here as well."""
