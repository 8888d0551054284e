"""Sockets in, acknowledgements out: the doors that vehicles connect to.  See README.md beside this file."""
