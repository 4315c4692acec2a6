"""The documentation: what it says is checked here."""
