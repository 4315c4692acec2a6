"""The demo: a chat that loses nothing, and a dashboard beside it. `scripts/demo` serves it."""
