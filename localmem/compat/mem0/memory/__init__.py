"""Where mem0 has its Memory: see main.py."""
