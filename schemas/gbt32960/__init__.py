"""GB/T 32960.3 on the wire, editions 2016 (``##``) and 2025 (``$$``): framing, replies, decoding, encoding.

``frame`` finds frames in a byte stream, ``replies`` answers them, ``edition2016`` and ``edition2025``
hold every field of every information type, ``decode`` turns reports into columns, ``reference`` is
its slow twin, ``encode`` writes frames for a simulator, ``explain`` annotates one for a person.
Clause numbers are those of the standard; nothing here does any I/O.
"""
