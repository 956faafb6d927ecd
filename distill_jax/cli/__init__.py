"""Flags and gin files: found, checked and explained."""
