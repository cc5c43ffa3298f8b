"""What tells Forge from A1111's WebUI is that this package is there."""

version = "2.0.1"
