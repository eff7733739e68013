"""Where mem0 has the client of its cloud: see main.py."""
