"""What crosses each boundary, and the codecs for it: no I/O, nothing imported from ``services``."""
