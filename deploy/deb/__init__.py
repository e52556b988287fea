"""Debian packages of the agent, built and tried in fresh Debian systems (docs/install.md)."""
