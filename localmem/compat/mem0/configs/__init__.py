"""Where mem0 has its configuration."""
