"""Tests of engine/figures."""
