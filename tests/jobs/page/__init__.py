"""Tests of jobs/page."""
