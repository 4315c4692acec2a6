"""Tests of one connection's parts."""
