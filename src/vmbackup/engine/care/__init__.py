"""The repository looked after: verified, healed, forgotten from."""
