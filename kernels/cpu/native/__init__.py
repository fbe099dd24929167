"""The CPU's hot path in C, for AVX-512 VNNI or AVX2: INT8 products, paged attention, whole decoders and encoders.

Anything amiss (no compiler, another chip, a product that is not bit-equal to torch's) leaves torch's operators in place:
slower, and of the same meaning.
"""
