"""Tests of engine/card."""
