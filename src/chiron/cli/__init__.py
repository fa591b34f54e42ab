"""The `chiron` command."""
