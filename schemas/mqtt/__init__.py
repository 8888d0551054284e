"""MQTT 3.1.1 and 5 on the wire: packets, scan kernels and topic names.  No I/O, no state."""
