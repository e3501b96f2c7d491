"""Encoders against what was stored: each program measures one thing."""
