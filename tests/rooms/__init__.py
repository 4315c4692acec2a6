"""Tests of the rooms, through in-process peers."""
