"""Frames in, commands out; events in, frames out."""
