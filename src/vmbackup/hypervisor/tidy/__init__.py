"""What runs leave on a guest, noted before it is made, and taken away."""
