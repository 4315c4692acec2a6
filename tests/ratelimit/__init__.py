"""Tests of the rate limiter: its limits, its caps, and as middleware."""
