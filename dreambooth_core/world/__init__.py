"""The embedded default: a procedural picture world, a tiny checkpoint trained on it, and a judge."""
