"""The sandbox: a small generated language whose truth is known word by word."""
