"""The demo: a chat that loses nothing. `scripts/demo` serves it."""
