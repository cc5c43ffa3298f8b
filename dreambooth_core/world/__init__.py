"""The embedded world: pictures, a small checkpoint trained on them, its subjects and its judge."""
